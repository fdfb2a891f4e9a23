//! SNTP (RFC 4330, on the packets of RFC 5905): pure. Times in, a request's bytes out; an answer's bytes in, an offset out.
//!
//! Written here because the crates at hand take the request's own time as its cookie and know one NTP era only; here
//! the cookie is random, so that nobody off the path can answer, and the era is the one that holds the time floor.

/// Bytes of a packet without extensions.
pub const PACKET: usize = 48;
/// Largest distance of a server to its own reference, in 1/65536 s (RFC 5905: MAXDISP, 16 s).
const DISTANCE_LIMIT: u32 = 16 << 16;
/// Seconds from the NTP epoch (1900) to the Unix epoch.
const EPOCHS: i64 = 2_208_988_800;
/// Seconds of an NTP era.
const ERA: i64 = 1 << 32;

/// Why an answer does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not an answer, or not to this request.
    #[error("that is no answer to the question")]
    Foreign,
    /// Stratum 0: the server asks to be left alone (RFC 5905, 7.4).
    #[error("the server asks to be left alone")]
    KissOfDeath,
    /// The server does not know the time.
    #[error("the server does not know the time itself")]
    Unsynchronised,
}

/// What an answer says of this machine's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The server's time is so many microseconds ahead.
    pub offset_us: i64,
    /// Time that the question and the answer spent on the way, in microseconds.
    pub delay_us: i64,
}

/// A question with this cookie, which must be new and cannot be guessed.
#[must_use]
pub fn request(cookie: u64) -> [u8; PACKET] {
    let mut packet = [0; PACKET];
    // No leap warning, version 4, mode 3 (client).
    let head = [0b00_100_011];
    let cookie = cookie.to_be_bytes();
    for (place, byte) in packet.iter_mut().zip(head) {
        *place = byte;
    }
    for (place, byte) in packet.iter_mut().skip(40).zip(cookie) {
        *place = byte;
    }
    packet
}

/// Reads the answer to the question with `cookie` that was sent and answered at these times of this machine's clock, in
/// microseconds since the Unix epoch. `floor` is in seconds.
///
/// # Errors
/// [`Refusal`].
pub fn read(packet: &[u8], cookie: u64, sent_us: i64, heard_us: i64, floor: i64) -> Result<Sample, Refusal> {
    let word = |at: usize| {
        let bytes: Option<[u8; 4]> = packet.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes.map(u32::from_be_bytes).ok_or(Refusal::Foreign)
    };
    let long = |at: usize| Ok::<u64, Refusal>((u64::from(word(at)?) << 32) | u64::from(word(at + 4)?));
    let head = word(0)?;
    let (leap, version, mode, stratum) = (
        head >> 30,
        (head >> 27) & 7,
        (head >> 24) & 7,
        (head >> 16) & 0xff,
    );
    if mode != 4 || !(3..=4).contains(&version) || long(24)? != cookie {
        return Err(Refusal::Foreign);
    }
    let (received, transmitted) = (long(32)?, long(40)?);
    if stratum == 0 {
        return Err(Refusal::KissOfDeath);
    }
    let distance = word(4)?.saturating_div(2).saturating_add(word(8)?);
    if leap == 3 || stratum > 15 || transmitted == 0 || received == 0 || distance >= DISTANCE_LIMIT {
        return Err(Refusal::Unsynchronised);
    }
    let (received, transmitted) = (unix_us(received, floor), unix_us(transmitted, floor));
    let there = received.saturating_sub(sent_us);
    let back = transmitted.saturating_sub(heard_us);
    let away = heard_us.saturating_sub(sent_us);
    Ok(Sample {
        offset_us: there.saturating_add(back) / 2,
        delay_us: away.saturating_sub(transmitted.saturating_sub(received)).max(0),
    })
}

/// An NTP timestamp as microseconds since the Unix epoch, in the era that begins with the floor.
fn unix_us(timestamp: u64, floor: i64) -> i64 {
    let seconds = i64::try_from(timestamp >> 32).unwrap_or(0) - EPOCHS;
    // A day of tolerance: a server slightly behind the floor shall not seem to be a century ahead.
    let eras = (floor.saturating_sub(86_400) - seconds).max(0);
    let eras = eras / ERA + i64::from(eras % ERA != 0);
    let micros = i64::try_from(((timestamp & 0xffff_ffff) * 1_000_000) >> 32).unwrap_or(0);
    (seconds + eras * ERA)
        .saturating_mul(1_000_000)
        .saturating_add(micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_795_000_000;

    fn ntp(unix_us: i64) -> u64 {
        let seconds = (unix_us.div_euclid(1_000_000) + EPOCHS).rem_euclid(ERA) as u64;
        let fraction = ((unix_us.rem_euclid(1_000_000) as u64) << 32).div_ceil(1_000_000);
        (seconds << 32) | fraction
    }

    fn answer(cookie: u64, received_us: i64, transmitted_us: i64) -> Vec<u8> {
        let mut packet = vec![0b00_100_100, 2, 6, 0xec];
        packet.extend([0; 20]);
        packet.extend(cookie.to_be_bytes());
        packet.extend(ntp(received_us).to_be_bytes());
        packet.extend(ntp(transmitted_us).to_be_bytes());
        packet
    }

    #[test]
    fn question_is_a_client_packet_with_nothing_but_its_cookie() {
        let packet = request(0x0102_0304_0506_0708);
        assert_eq!((packet[0], &packet[40..]), (0x23, &[1, 2, 3, 4, 5, 6, 7, 8][..]));
        assert!(packet[1..40].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn answer_to_another_question_or_from_a_server_without_time_is_refused() {
        let good = answer(7, NOW * 1_000_000, NOW * 1_000_000);
        assert!(read(&good, 7, 0, 0, NOW).is_ok());
        assert_eq!(read(&good, 8, 0, 0, NOW), Err(Refusal::Foreign));
        assert_eq!(read(&good[..47], 7, 0, 0, NOW), Err(Refusal::Foreign));
        let with = |at: usize, byte: u8| {
            let mut packet = good.clone();
            packet[at] = byte;
            read(&packet, 7, 0, 0, NOW)
        };
        assert_eq!(with(0, 0b00_100_011), Err(Refusal::Foreign), "a client's packet");
        assert_eq!(with(0, 0b11_100_100), Err(Refusal::Unsynchronised), "leap alarm");
        assert_eq!(with(1, 0), Err(Refusal::KissOfDeath));
        assert_eq!(with(1, 16), Err(Refusal::Unsynchronised));
        assert_eq!(with(9, 16), Err(Refusal::Unsynchronised), "16 s of dispersion");
    }

    #[test]
    fn time_after_2036_is_not_1900() {
        let late = 2_300_000_000;
        let packet = answer(7, late * 1_000_000, late * 1_000_000);
        let sample = read(&packet, 7, NOW * 1_000_000, NOW * 1_000_000, NOW).unwrap();
        assert!((sample.offset_us - (late - NOW) * 1_000_000).abs() <= 2);
    }

    proptest! {
        #[test]
        fn offset_is_found_whatever_the_clock_says(
            clock in 0i64..4_102_444_800, ahead_us in -1_000_000_000i64..1_000_000_000,
            there in 0i64..50_000, back in 0i64..50_000, held in 0i64..1_000,
        ) {
            // The server's time is about NOW; this machine's clock says anything at all.
            let (sent, server) = (clock * 1_000_000, NOW * 1_000_000 + ahead_us);
            let heard = sent + there + held + back;
            let packet = answer(7, server + there, server + there + held);
            let sample = read(&packet, 7, sent, heard, NOW - 5_000).unwrap();
            let error = sample.offset_us - (server - sent);
            prop_assert!(error.abs() <= 25_002, "half of the way's asymmetry at most: {error}");
            prop_assert!((sample.delay_us - there - back).abs() <= 4);
        }

        #[test]
        fn reader_takes_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..100), cookie: u64, sent: i64, heard: i64, floor in 0i64..4_000_000_000) {
            let _ = read(&bytes, cookie, sent, heard, floor);
        }
    }
}
