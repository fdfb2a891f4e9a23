//! Asks for a plan, line by line, where `create` was told nothing and a person is there. Makes no pack.
//!
//! Invariant: what is answered is a plan file, which is shown, so that the same pack can be made again without a question.

use crate::chance::parse_span;
use crate::failure::{Failure, invalid};
use crate::plan::{FileImage, PlanFile, parse_image};
use anyhow::Context as _;
use beemesh_ids::NodeName;
use beemesh_joinpack_format::limits;
use std::io::{BufRead, Read as _, Write};
use std::net::SocketAddr;
use std::path::Path;

/// Longest line that is read, in bytes.
const LINE: u64 = 4096;
/// Times that one question is asked.
const PATIENCE: usize = 5;

/// A person who answers.
struct Person<'a, R, W> {
    input: &'a mut R,
    output: &'a mut W,
}

impl<R: BufRead, W: Write> Person<'_, R, W> {
    /// Asks until `read` takes the answer; an empty line means `default`.
    fn ask<T>(
        &mut self,
        question: &str,
        default: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, Failure> {
        let hint = match default {
            "" => String::new(),
            default => format!(" [{default}]"),
        };
        for _ in 0..PATIENCE {
            write!(self.output, "{question}{hint} ")
                .and_then(|()| self.output.flush())
                .context("failed to ask")?;
            let mut line = String::new();
            let length = self.input.by_ref().take(LINE).read_line(&mut line);
            if length.context("failed to read an answer")? == 0 {
                invalid!("the answers ended early: nothing was written");
            }
            let text = match line.trim() {
                "" => default,
                text => text,
            };
            match read(text) {
                Ok(value) => return Ok(value),
                Err(why) => writeln!(self.output, "  {why}").context("failed to ask")?,
            }
        }
        invalid!("no answer to `{question}` was of use: nothing was written")
    }

    fn yes(&mut self, question: &str, default: &str) -> Result<bool, Failure> {
        self.ask(question, default, |text| {
            match text.to_ascii_lowercase().as_str() {
                "y" | "yes" => Ok(true),
                "n" | "no" => Ok(false),
                other => Err(format!("`{other}` is neither yes nor no")),
            }
        })
    }
}

/// Asks what a pack should contain.
pub fn plan(input: &mut impl BufRead, output: &mut impl Write) -> Result<PlanFile, Failure> {
    let mut person = Person { input, output };
    let count = person.ask(
        "How many boxes get a place by this pack (0: they ask)?",
        "1",
        |text| {
            let count = text
                .parse::<u32>()
                .ok()
                .filter(|count| *count as usize <= limits::NODES);
            count.ok_or_else(|| format!("`{text}` is not a number up to {}", limits::NODES))
        },
    )?;
    let found = person.yes("Is it a new site, where the first box founds the cell?", "yes")?;
    let question = match found {
        true => "A member that boxes can reach, IP:PORT (empty: none yet)",
        false => "A member that boxes can reach, IP:PORT (empty: they find each other on the link)",
    };
    let peer = person.ask(question, "", |text| match text {
        "" => Ok(None),
        text => match text.parse::<SocketAddr>() {
            Ok(address) => Ok(Some(address.to_string())),
            Err(_) => Err(format!("`{text}` is not like 10.0.0.11:7400")),
        },
    })?;
    let requests = match count {
        0 => true,
        _ => person.yes(
            "May other boxes write a request to the stick, which you answer?",
            "no",
        )?,
    };
    let blank_disk = person.yes("May boxes take an empty disk for their state?", "yes")?;
    let cell = person.ask("Cell", "main", |text| {
        let name = text.parse::<NodeName>();
        name.map(|name| name.to_string())
            .map_err(|_| format!("`{text}` is not a name like `main`"))
    })?;
    let mut image = Vec::new();
    while image.len() < limits::IMAGES {
        let question = "An image, NAME=FILE of an OCI archive (empty: no more)";
        let next = person.ask(question, "", |text| match text {
            "" => Ok(None),
            text => {
                let (name, archive) = parse_image(text)?;
                // It is opened when the pack is made; a wrong name is said while it can be put right.
                match Path::new(&archive).is_file() {
                    true => Ok(Some(FileImage { name, archive })),
                    false => Err(format!("there is no file `{}`", archive.display())),
                }
            }
        })?;
        match next {
            Some(next) => image.push(next),
            None => break,
        }
    }
    let expires = person.ask("How long can the pack be used?", "30d", |text| {
        parse_span(text).map(|_| text.to_owned())
    })?;
    Ok(PlanFile {
        cell: Some(cell),
        expires: Some(expires),
        found,
        requests,
        blank_disk,
        rotate_keys: false,
        peers: peer.into_iter().collect(),
        nodes: (count > 0).then_some(count),
        image,
        ..PlanFile::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(lines: &str) -> (Result<PlanFile, Failure>, String) {
        let (mut input, mut output) = (lines.as_bytes(), Vec::new());
        let plan = plan(&mut input, &mut output);
        (plan, String::from_utf8(output).unwrap())
    }

    #[test]
    fn empty_answers_are_the_defaults_and_what_is_shown_makes_the_same_plan() {
        let (plan, _) = answered("\n\n\n\n\n\n\n\n");
        let text = toml::to_string(&plan.unwrap()).unwrap();
        let same: PlanFile = toml::from_str(&text).unwrap();
        assert_eq!(toml::to_string(&same).unwrap(), text);
        assert_eq!(
            text,
            "cell = \"main\"\nexpires = \"30d\"\nfound = true\nblank-disk = true\nnodes = 1\n"
        );
    }

    #[test]
    fn answer_of_no_use_is_asked_for_again_and_not_for_ever() {
        let (plan, said) =
            answered("many\n3\nno\n10.0.0.1\n10.0.0.1:7400\nyes\nno\nshop\nweb=/none/such\n\n1y\n7d\n");
        let plan = plan.unwrap();
        assert_eq!((plan.nodes, plan.found, plan.requests), (Some(3), false, true));
        assert_eq!((plan.peers.len(), plan.expires.as_deref()), (1, Some("7d")));
        for words in ["`many`", "`10.0.0.1`", "`/none/such`", "`1y`"] {
            assert!(said.contains(words), "{words}: {said}");
        }
        let refused = |lines: &str| answered(lines).0.err().unwrap();
        assert_eq!(refused("1\nyes\n").exit_code(), 2);
        assert!(refused(&"x\n".repeat(9)).to_string().contains("of use"));
        let long = "9".repeat(10_000);
        assert!(
            answered(&format!("{long}\n")).0.is_err(),
            "a line without an end is not read to it"
        );
    }
}
