//! What was said: messages and bytes, by kind and by node.

use std::collections::BTreeMap;

/// Counters of what was sent, lost messages included.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    /// Messages.
    pub messages: u64,
    /// Bytes.
    pub bytes: u64,
    /// Messages and bytes of each kind of [`beemesh_agent_sched::wire::Message`].
    pub kinds: BTreeMap<String, (u64, u64)>,
    /// Messages and bytes that each node sent.
    pub nodes: Vec<(u64, u64)>,
}

impl Traffic {
    pub(crate) fn count(&mut self, from: usize, message: &[u8]) {
        let bytes = message.len() as u64;
        let add = |(messages, all): &mut (u64, u64)| {
            *messages += 1;
            *all += bytes;
        };
        self.messages += 1;
        self.bytes += bytes;
        if self.nodes.len() <= from {
            self.nodes.resize(from + 1, (0, 0));
        }
        self.nodes.get_mut(from).into_iter().for_each(add);
        let kind = kind(message);
        match self.kinds.get_mut(kind) {
            Some(known) => add(known),
            None => add(self.kinds.entry(kind.to_owned()).or_default()),
        }
    }

    /// What was said since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let less = |now: (u64, u64), then: (u64, u64)| (now.0 - then.0, now.1 - then.1);
        let kind = |(kind, now): (&String, &(u64, u64))| {
            let then = before.kinds.get(kind).copied().unwrap_or_default();
            (kind.clone(), less(*now, then))
        };
        let node =
            |(n, now): (usize, &(u64, u64))| less(*now, before.nodes.get(n).copied().unwrap_or_default());
        Self {
            messages: self.messages - before.messages,
            bytes: self.bytes - before.bytes,
            kinds: self.kinds.iter().map(kind).collect(),
            nodes: self.nodes.iter().enumerate().map(node).collect(),
        }
    }

    /// Messages and bytes of one kind.
    pub fn of(&self, kind: &str) -> (u64, u64) {
        self.kinds.get(kind).copied().unwrap_or_default()
    }
}

/// The name of the variant, as CBOR writes it: alone, or as the one key of a map.
pub(crate) fn kind(message: &[u8]) -> &str {
    let named = match message {
        [_, 0xa1, rest @ ..] | [_, rest @ ..] => rest,
        [] => &[],
    };
    let name = match named {
        [head @ 0x60..=0x77, rest @ ..] => rest.get(..usize::from(head - 0x60)),
        _ => None,
    };
    name.and_then(|name| std::str::from_utf8(name).ok())
        .unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_agent_sched::wire::Message;

    #[test]
    fn kinds_are_read_from_the_bytes() {
        for (message, name) in [
            (Message::StatusWanted, "StatusWanted"),
            (Message::Swim(vec![1]), "Swim"),
            (Message::RevocationsWanted, "RevocationsWanted"),
        ] {
            assert_eq!(kind(&message.encode().unwrap()), name);
        }
        assert_eq!(kind(&[]), "unknown");
    }

    #[test]
    fn difference_of_two_counts_is_what_was_said_between() {
        let mut traffic = Traffic::default();
        let message = Message::StatusWanted.encode().unwrap();
        traffic.count(0, &message);
        let before = traffic.clone();
        traffic.count(3, &message);
        let between = traffic.since(&before);
        assert_eq!((between.messages, between.of("StatusWanted").0), (1, 1));
        assert_eq!(between.nodes[3].0, 1);
        assert_eq!(between.nodes[0].0, 0);
    }
}
