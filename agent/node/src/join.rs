//! What a stick means for this box: join, take news, or nothing.
//!
//! Pure: pack and present state in, decision out; the driver reads, stages and writes. A join becomes real with one
//! atomic write of the [`FabricDocument`]: before it the box is a stranger, after it a member.

use crate::clock::Floor;
use crate::network;
use crate::stick::StickError;
use beemesh_agent_identity::Memory;
use beemesh_ids::{Digest, NodeName, PeerId};
use beemesh_init_api::NetworkConfig;
use beemesh_joinpack_format::Envelope;
use beemesh_joinpack_format::{
    Assurance, LogKey, Machine, Member, Membership, Pack, PackVoucher, Refusal, ReleaseEntry, RootChain,
    SecretKey, Source, Timestamp, Verified, Voucher,
};
use serde::{Deserialize, Serialize};

/// Name of the document on the state volume.
pub const DOCUMENT: &str = "fabric.json";

/// Everything that makes this box a member. Written whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FabricDocument {
    /// Root documents 1..N.
    pub roots: Vec<Envelope>,
    /// The credential.
    pub membership: Membership,
    /// Serial of the newest pack applied.
    pub serial: String,
    /// Addresses of other members, `ip:port`.
    pub peers: Vec<String>,
    /// This box's network settings.
    pub network: NetworkConfig,
    /// This box may found the cell alone.
    pub found: bool,
    /// The time floor when this was written.
    pub floor: Timestamp,
    /// Vouchers of the pack for any machine that this box did not take: what it goes on to where another one had the same.
    #[serde(default)]
    pub spare: Vec<PackVoucher>,
    /// Another machine redeemed this box's voucher before it, and no other was left: the box stays out until a newer pack
    /// brings a place for it.
    #[serde(default)]
    pub lost: bool,
    /// OS releases that members may have booted, of the newest pack that names any.
    #[serde(default)]
    pub releases: Vec<ReleaseEntry>,
    /// The key to which this box encrypts the log that it leaves on sticks, of the newest pack that names one.
    #[serde(default)]
    pub log_key: Option<LogKey>,
}

/// The document with its signatures checked again, as at every start.
#[derive(Debug, Clone)]
pub struct Joined {
    /// The document.
    pub document: FabricDocument,
    /// Its root chain.
    pub roots: RootChain,
    /// This box as a member.
    pub member: Member,
}

impl Joined {
    /// Checks a stored document for the key `peer`.
    pub fn check(document: FabricDocument, peer: &PeerId) -> Result<Self, Refusal> {
        let roots = RootChain::bootstrap(&document.roots)?;
        // A box does not lose its place because the key that once signed for it is gone: its peers judge for themselves.
        let member = document.membership.verify_known(&roots, peer)?;
        // A key that was rotated away is the box's no more.
        if member.keys.newest() != peer {
            return Err(Refusal::OtherPeer);
        }
        Ok(Self {
            document,
            roots,
            member,
        })
    }
}

/// What to do with a verified pack.
#[derive(Debug)]
pub struct Plan {
    /// The document to commit.
    pub document: FabricDocument,
    /// Images to stage and import: (name, digest).
    pub images: Vec<(String, Digest)>,
    /// Present state is a member already: only news is taken.
    pub already_member: bool,
}

/// The box as it stands in front of the stick.
pub struct Applicant<'a> {
    /// Peer id of the box.
    pub peer: &'a PeerId,
    /// Where its key lies.
    pub assurance: Assurance,
    /// What it is recognised by.
    pub machine: &'a Machine,
    /// Its time floor.
    pub floor: Floor,
    /// Its system clock.
    pub system: Timestamp,
    /// What it is already.
    pub joined: Option<&'a Joined>,
    /// What its TPM kept of the time before a power cut, where it has no disk.
    pub again: Option<&'a Memory>,
    /// Nodes whose vouchers others have redeemed, by the receipts on the stick. A hint that saves a detour, no proof.
    pub spent: &'a [NodeName],
}

/// The voucher that a box takes from a pack: the one that it had before it lost its memory; that of its own place; without
/// either the first that is for any machine.
pub fn choose<'a>(
    pack: &'a Pack<Verified>,
    applicant: &Applicant<'_>,
) -> Result<&'a PackVoucher, StickError> {
    let had = applicant.again.map(|memory| memory.voucher.as_str());
    if let Some((offer, _)) = unrevoked(pack).find(|(_, voucher)| Some(voucher.id.as_str()) == had) {
        return Ok(offer);
    }
    match pack.manifest().entry_for(applicant.machine) {
        Some(entry) => {
            let own = unrevoked(pack).find(|(_, voucher)| voucher.node == entry.name);
            own.map(|(offer, _)| offer).ok_or(StickError::NoVoucher)
        }
        None => open_offers(pack, applicant.spent)
            .next()
            .ok_or(StickError::NoVoucher),
    }
}

fn unrevoked(pack: &Pack<Verified>) -> impl Iterator<Item = (&PackVoucher, &Voucher)> {
    let offers = pack.manifest().vouchers.iter().zip(pack.vouchers());
    offers.filter(|(_, voucher)| !pack.revocations().has_voucher(&voucher.id))
}

/// The vouchers for any machine, those first that nobody is known to have taken: a receipt can be forged.
fn open_offers<'a>(pack: &'a Pack<Verified>, spent: &[NodeName]) -> impl Iterator<Item = &'a PackVoucher> {
    let tied = |name: &NodeName| {
        let mut nodes = pack.manifest().nodes.iter();
        nodes.any(|entry| entry.name == *name && entry.is_tied())
    };
    let open = unrevoked(pack).filter(move |(_, voucher)| !tied(&voucher.node));
    let (fresh, taken): (Vec<_>, Vec<_>) = open.partition(|(_, voucher)| !spent.contains(&voucher.node));
    fresh.into_iter().chain(taken).map(|(offer, _)| offer)
}

/// Decides what a verified pack means for the box. `redeemed` is the voucher that [`choose`] gave with its one-time key; a
/// member needs none.
pub fn plan(
    pack: &Pack<Verified>,
    applicant: &Applicant<'_>,
    redeemed: Option<(&PackVoucher, &SecretKey)>,
) -> Result<Plan, StickError> {
    let manifest = pack.manifest();
    let entry = manifest.entry_for(applicant.machine);
    let mut floor = applicant.floor;
    floor.raise(manifest.issued);
    let (membership, spare) = match (applicant.joined, redeemed) {
        (Some(joined), _) => (joined.document.membership.clone(), joined.document.spare.clone()),
        (None, Some((offer, key))) => {
            let document = pack.vouchers().iter().zip(&manifest.vouchers);
            let voucher = document
                .clone()
                .find(|(_, other)| *other == offer)
                .map(|(voucher, _)| voucher);
            let voucher = voucher.ok_or(StickError::NoVoucher)?;
            // The time that it had the first time makes the same redemption: to its peers nothing has happened.
            let again = applicant.again.filter(|memory| memory.voucher == voucher.id);
            let now = match again {
                Some(memory) => memory.redeemed,
                None => floor.now_within(applicant.system, voucher.issued, voucher.expires),
            };
            let membership =
                Membership::redeem(&offer.envelope, key, applicant.peer, applicant.assurance, now)?;
            // Only a box without a place of its own has others to go on to.
            let others = open_offers(pack, applicant.spent).filter(|other| *other != offer);
            let spare = match entry {
                Some(_) => Vec::new(),
                None => others.cloned().collect(),
            };
            (membership, spare)
        }
        (None, None) => return Err(StickError::NoVoucher),
    };
    // Proves the credential before it is kept: a pack with a bad voucher is refused here and not by the first member.
    membership.verify_known(pack.roots(), applicant.peer)?;
    let network = match (entry, applicant.joined) {
        (None, Some(joined)) => joined.document.network.clone(),
        (entry, _) => network::config_for(entry, applicant.machine.macs.first()),
    };
    let document = FabricDocument {
        roots: pack.roots().envelopes().to_vec(),
        membership,
        serial: manifest.serial.clone(),
        peers: manifest.peers.clone(),
        network,
        found: manifest.found,
        floor: floor.0,
        spare,
        lost: false,
        releases: match (manifest.releases.as_slice(), applicant.joined) {
            ([], Some(joined)) => joined.document.releases.clone(),
            (named, _) => named.to_vec(),
        },
        log_key: manifest
            .log_key
            .or(applicant.joined.and_then(|joined| joined.document.log_key)),
    };
    let images = manifest
        .images
        .iter()
        .map(|image| (image.name.clone(), image.digest))
        .collect();
    Ok(Plan {
        document,
        images,
        already_member: applicant.joined.is_some(),
    })
}

/// The membership `kept` with the rotations that the disk holds of it: a rotation may have been written since. A membership by
/// another redemption is left as it is.
pub fn with_rotations_of(mut kept: FabricDocument, disk: Option<&FabricDocument>) -> FabricDocument {
    if let Some(disk) = disk.map(|disk| &disk.membership)
        && (&disk.voucher, &disk.redemption) == (&kept.membership.voucher, &kept.membership.redemption)
        && disk.rotations.len() > kept.membership.rotations.len()
    {
        kept.membership.rotations = disk.rotations.clone();
    }
    kept
}

/// The pack, for a box that knows from before a power cut what fabric it belongs to and which pack it has applied: as a box with a
/// disk would it refuses another fabric's and an older one. The very pack that it applied is good for it past its time, or a
/// power cut would put it out.
pub fn verify_again(manifest: &[u8], floor: Floor, memory: &Memory) -> Result<Pack<Verified>, Refusal> {
    let last = Some(memory.serial.as_str());
    let verify = |floor| Pack::parse(manifest).and_then(|pack| pack.verify(None, floor, last));
    let pack = verify(floor.0).or_else(|refusal| {
        let applied = verify(Timestamp::EPOCH).ok();
        let applied = applied.filter(|pack| pack.manifest().serial == memory.serial);
        applied.ok_or(refusal)
    })?;
    let found = pack.roots().fabric_id();
    match *found == memory.fabric {
        true => Ok(pack),
        false => Err(Refusal::OtherFabric {
            what: "join pack",
            found: found.clone(),
            expected: memory.fabric.clone(),
        }),
    }
}

/// What the box counts as in front of a pack with this serial. One that lost its place is nobody to a newer pack; the pack that
/// it lost the place of has nothing more for it.
pub fn standing<'a>(
    joined: Option<&'a Joined>,
    lost: bool,
    serial: &str,
) -> Result<Option<&'a Joined>, StickError> {
    match joined {
        Some(joined) if lost && joined.document.serial == serial => Err(StickError::NoVoucher),
        Some(_) if lost => Ok(None),
        joined => Ok(joined),
    }
}

/// The membership by the next voucher of the pack that the box joined with, after another machine was found to have redeemed
/// the present one first; `None` where no voucher is left that can be redeemed.
pub fn next_voucher(
    joined: &Joined,
    assurance: Assurance,
    floor: Floor,
    system: Timestamp,
) -> Option<FabricDocument> {
    let mut document = joined.document.clone();
    while !document.spare.is_empty() {
        let offer = document.spare.remove(0);
        let Ok(voucher) = Voucher::verify(&offer.envelope, &joined.roots, Source::Member) else {
            continue;
        };
        // Later than the redemption that gave way, or those who know that one would keep it: the clock may have gone back.
        let floor = Floor(floor.0.max(joined.member.redeemed.plus_seconds(1)));
        let now = floor.now_within(system, voucher.issued, voucher.expires);
        let Some(key) = &offer.one_time_key else { continue };
        let redeemed = Membership::redeem(&offer.envelope, key, &joined.member.peer_id, assurance, now);
        if let Ok(membership) = redeemed {
            // The same node by another voucher: its keys are what they were.
            let rotations = std::mem::take(&mut document.membership.rotations);
            document.membership = Membership {
                rotations,
                ..membership
            };
            return Some(document);
        }
    }
    None
}

/// Whether this box gives way to `rival`, who redeemed the same voucher, as `told_by` proves. A third member that took the
/// rival in settles it; of two that meet each other the one with the later redemption gives way, so that one of them does.
pub fn gives_way(own: &Member, rival: &Member, told_by: &PeerId) -> bool {
    rival.voucher_id == own.voucher_id
        && rival.peer_id != own.peer_id
        && (rival.keys.generation_of(told_by).is_none()
            || (rival.redeemed, &rival.peer_id) < (own.redeemed, &own.peer_id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{NOW, applicant, pack, peer};
    use beemesh_ids::FabricId;
    use beemesh_joinpack_format::NodeKeys;

    /// What a box becomes by a pack, and how many vouchers it could go on to; or the word of the refusal.
    fn join(pack: &Pack<Verified>, n: u8, mac: &str, spent: &[&str]) -> Result<Joined, &'static str> {
        let machine = Machine {
            macs: vec![mac.to_owned()],
            ..Machine::default()
        };
        let (peer, spent) = (
            peer(n),
            spent
                .iter()
                .map(|name| name.parse().unwrap())
                .collect::<Vec<NodeName>>(),
        );
        let applicant = Applicant {
            spent: &spent,
            ..applicant(&peer, &machine)
        };
        let offer = choose(pack, &applicant).map_err(|error| error.code())?;
        let plan = plan(
            pack,
            &applicant,
            Some((offer, offer.one_time_key.as_ref().unwrap())),
        );
        Ok(Joined::check(plan.map_err(|error| error.code())?.document, &peer).unwrap())
    }

    const MAC: &str = "52:54:00:00:00:01";
    const OTHER: &str = "52:54:00:00:00:99";

    #[test]
    fn box_takes_its_own_place_or_the_first_that_is_for_any_machine() {
        let mixed = pack(4, 2, &[]);
        let own = join(&mixed, 1, MAC, &[]).unwrap();
        assert_eq!(
            (own.member.name.as_str(), own.document.spare.len()),
            ("node-1", 0)
        );
        let any = join(&mixed, 1, OTHER, &[]).unwrap();
        assert_eq!(
            (any.member.name.as_str(), any.document.spare.len()),
            ("node-3", 1)
        );
        assert_eq!(join(&pack(2, 2, &[]), 1, OTHER, &[]).err(), Some("no-voucher"));
    }

    #[test]
    fn places_that_others_took_by_this_stick_come_last_and_revoked_ones_never() {
        let open = pack(3, 0, &[]);
        let second = join(&open, 1, OTHER, &["node-1"]).unwrap();
        assert_eq!(second.member.name.as_str(), "node-2");
        assert_eq!(
            second.document.spare.len(),
            2,
            "a forged receipt takes no place away"
        );
        let third = join(&pack(3, 0, &[1, 2]), 1, OTHER, &[]).unwrap();
        assert_eq!(
            (third.member.name.as_str(), third.document.spare.len()),
            ("node-3", 0)
        );
        assert_eq!(join(&pack(1, 0, &[1]), 1, OTHER, &[]).err(), Some("no-voucher"));
    }

    #[test]
    fn boxes_with_copies_of_one_stick_end_at_places_of_their_own_and_the_last_stays_out() {
        let open = pack(3, 0, &[]);
        let mut boxes: Vec<Joined> = (1..=4).map(|n| join(&open, n, OTHER, &[]).unwrap()).collect();
        let mut out = Vec::new();
        // Each pair that clashes: who gives way goes on. Bounded by the vouchers of the pack.
        for _ in 0..20 {
            let clash = (0..boxes.len())
                .flat_map(|a| (0..boxes.len()).map(move |b| (a, b)))
                .find(|(a, b)| {
                    let (own, rival) = (&boxes[*a].member, &boxes[*b].member);
                    !out.contains(a) && !out.contains(b) && gives_way(own, rival, &rival.peer_id)
                });
            let Some((loser, _)) = clash else { break };
            let before = boxes[loser].member.redeemed;
            match next_voucher(&boxes[loser], Assurance::Low, Floor(NOW), Timestamp(0)) {
                Some(document) => {
                    let peer = boxes[loser].member.peer_id.clone();
                    boxes[loser] = Joined::check(document, &peer).unwrap();
                    assert!(
                        boxes[loser].member.redeemed > before,
                        "even if the clock went back"
                    );
                }
                None => out.push(loser),
            }
        }
        let mut names: Vec<_> = (0..4)
            .filter(|n| !out.contains(n))
            .map(|n| boxes[n].member.name.to_string())
            .collect();
        names.sort();
        assert_eq!(
            (names, out.len()),
            (
                vec!["node-1".to_owned(), "node-2".to_owned(), "node-3".to_owned()],
                1
            )
        );
    }

    #[test]
    fn member_takes_news_and_keeps_its_place_and_what_it_could_go_on_to() {
        let open = pack(3, 0, &[]);
        let joined = join(&open, 1, OTHER, &[]).unwrap();
        let machine = Machine::default();
        let applicant = Applicant {
            joined: Some(&joined),
            ..applicant(&joined.member.peer_id, &machine)
        };
        let plan = plan(&pack(0, 0, &[1]), &applicant, None).unwrap();
        assert!(plan.already_member);
        assert_eq!(plan.document.membership, joined.document.membership);
        assert_eq!(plan.document.spare, joined.document.spare);
    }

    #[test]
    fn box_that_lost_its_place_takes_one_of_a_newer_pack_and_none_of_the_same() {
        let joined = join(&pack(1, 0, &[]), 1, OTHER, &[]).unwrap();
        let serial = joined.document.serial.clone();
        let newer = "01KDVKFD00000000000000000B";
        let as_what = |lost, serial: &str| match standing(Some(&joined), lost, serial) {
            Ok(Some(_)) => "member",
            Ok(None) => "new",
            Err(refused) => refused.code(),
        };
        assert_eq!(as_what(false, &serial), "member");
        assert_eq!(as_what(false, newer), "member");
        assert_eq!(as_what(true, &serial), "no-voucher");
        assert_eq!(as_what(true, newer), "new");
        assert!(matches!(standing(None, false, newer), Ok(None)));
    }

    /// What the TPM of a box keeps that applied `pack` as node-2, though it has another one's MAC address by now.
    fn kept(pack: &Pack<Verified>) -> Memory {
        let folder = tempfile::tempdir().unwrap();
        let tpm = beemesh_firmware_tpm::FakeTpm::new(1);
        beemesh_agent_identity::NodeKey::load_or_create(folder.path(), &tpm).unwrap();
        let sealed = beemesh_agent_identity::NodeKey::sealed(folder.path());
        let joined = join(pack, 1, OTHER, &["node-1"]).unwrap();
        let serial = &joined.document.serial;
        Memory::of(
            sealed.unwrap().unwrap(),
            &joined.member,
            serial,
            joined.document.floor,
        )
    }

    #[test]
    fn box_takes_the_voucher_again_that_its_tpm_remembers_and_it_is_the_same_redemption() {
        let (open, machine) = (pack(3, 0, &[]), Machine::default());
        let (memory, peer) = (kept(&open), peer(1));
        let first = join(&open, 1, OTHER, &["node-1"]).unwrap();
        let again = |memory: &Memory, system: i64| {
            let applicant = Applicant {
                again: Some(memory),
                system: Timestamp(system),
                floor: Floor(NOW.plus_seconds(1_000)),
                ..applicant(&peer, &machine)
            };
            let offer = choose(&open, &applicant).unwrap();
            let key = offer.one_time_key.as_ref().unwrap();
            plan(&open, &applicant, Some((offer, key))).unwrap().document
        };
        for system in [0, NOW.0 + 50, 4_102_444_800] {
            let document = again(&memory, system);
            assert_eq!(document.membership, first.document.membership, "{system}");
        }
        // One that the pack does not hold is none to take.
        let other = Memory {
            voucher: "01KDVKFD00000000000000ZZZZ".to_owned(),
            ..memory
        };
        let document = again(&other, NOW.0);
        assert_eq!(
            Joined::check(document, &peer).unwrap().member.name.as_str(),
            "node-1"
        );
    }

    #[test]
    fn box_that_remembers_refuses_older_and_foreign_packs_and_takes_its_own_past_its_end() {
        let bytes = crate::fixture::pack_bytes(3, 0, &[]);
        let own = pack(3, 0, &[]);
        let memory = kept(&own);
        let late = Floor(own.manifest().expires.plus_seconds(1));
        let verify = |floor, memory: &Memory| verify_again(&bytes, floor, memory).map(drop);
        assert_eq!(verify(Floor(NOW), &memory), Ok(()));
        assert_eq!(verify(late, &memory), Ok(()), "the very pack that it applied");
        let newer = Memory {
            serial: "01KDVKFD00000000000000000Z".to_owned(),
            ..memory.clone()
        };
        let older = verify(Floor(NOW), &newer);
        assert!(
            matches!(older, Err(Refusal::OlderThanApplied { .. })),
            "{older:?}"
        );
        let before = Memory {
            serial: "01AAAAAAAA0000000000000000".to_owned(),
            ..memory.clone()
        };
        let expired = verify(late, &before);
        assert!(matches!(expired, Err(Refusal::Expired { .. })), "{expired:?}");
        let elsewhere = Memory {
            fabric: FabricId::from_root(Digest::of(b"another")),
            ..memory
        };
        let foreign = verify(Floor(NOW), &elsewhere);
        assert!(matches!(foreign, Err(Refusal::OtherFabric { .. })), "{foreign:?}");
    }

    fn member(voucher: &str, peer: u8, redeemed: i64) -> Member {
        Member {
            fabric: FabricId::from_root(Digest::of(b"root")),
            name: "till".parse().unwrap(),
            peer_id: PeerId::from_ed25519(&[peer; 32]),
            keys: NodeKeys::first(
                PeerId::from_ed25519(&[peer; 32]),
                voucher.to_owned(),
                Timestamp(redeemed),
            ),
            voucher_id: voucher.to_owned(),
            vouched: Timestamp(0),
            cell: "cell".to_owned(),
            assurance: Assurance::Low,
            redeemed: Timestamp(redeemed),
        }
    }

    #[test]
    fn of_two_that_redeemed_one_voucher_exactly_one_gives_way_to_the_other() {
        for (early, late) in [((1, 10), (2, 20)), ((1, 10), (2, 10)), ((2, 10), (1, 20))] {
            let (a, b) = (member("v", early.0, early.1), member("v", late.0, late.1));
            let one = gives_way(&a, &b, &b.peer_id);
            assert_ne!(one, gives_way(&b, &a, &a.peer_id), "{early:?} {late:?}");
        }
    }

    #[test]
    fn third_member_settles_it_and_another_voucher_or_the_own_one_is_no_reason() {
        let (own, third) = (member("v", 1, 10), PeerId::from_ed25519(&[9; 32]));
        assert!(gives_way(&own, &member("v", 2, 20), &third));
        assert!(!gives_way(&own, &member("w", 2, 5), &third));
        assert!(!gives_way(&own, &own, &third));
    }
}
