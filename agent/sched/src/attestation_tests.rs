use super::*;
use beemesh_firmware_measure::fake::FakeChip;
use proptest::prelude::*;

fn peer(n: u8) -> PeerId {
    PeerId::from_ed25519(&[n; 32])
}

fn registers() -> BTreeMap<u8, Digest> {
    QUOTED.iter().map(|pcr| (pcr, Digest::of(&[pcr]))).collect()
}

fn list(id: &str, releases: &[(&str, Digest)]) -> ReleaseNews {
    let releases = releases.iter().map(|(version, pcr11)| Release {
        version: (*version).into(),
        pcr11: *pcr11,
    });
    ReleaseNews {
        id: id.into(),
        releases: releases.collect(),
    }
}

fn releases() -> Releases {
    let mut releases = Releases::default();
    releases.learn(list("1", &[("1", Digest::of(&[IMAGE])), ("2", Digest::of(b"2"))]));
    releases
}

const NONCE: [u8; 32] = [3; 32];
const SECRET: [u8; 32] = [4; 32];

/// A verifier, a prover with its chip, and what it shows.
struct Scene {
    verifier: PeerId,
    prover: PeerId,
    chip: FakeChip,
    evidence: Evidence,
}

fn scene() -> Scene {
    let (verifier, prover, chip) = (peer(1), peer(2), FakeChip::new());
    let ak = chip.public();
    let ek = Digest::of(b"ek");
    let evidence = Evidence {
        ek,
        vouched_ek: Some(ek),
        nonce: NONCE,
        quote: chip.quote(quote_nonce(&NONCE, &verifier, &prover).as_bytes(), &registers()),
        activation: Some(Activation {
            ek,
            ak: Digest::of(&ak),
            secret: SECRET,
            proof: activation_proof(&SECRET, &verifier, &prover),
        }),
        ak,
    };
    Scene {
        verifier,
        prover,
        chip,
        evidence,
    }
}

impl Scene {
    fn judge(&self, known: Option<&Baseline>) -> Result<(NodeAssurance, Baseline), Refusal> {
        judge(
            &self.verifier,
            &self.prover,
            &self.evidence,
            known,
            None,
            &releases(),
        )
    }

    fn judge_accepted(&self, known: Option<&Baseline>, accepted: &Registers) -> (NodeAssurance, Baseline) {
        judge(
            &self.verifier,
            &self.prover,
            &self.evidence,
            known,
            Some(accepted),
            &releases(),
        )
        .unwrap()
    }

    /// The prover boots with these registers.
    fn boots(&mut self, change: impl FnOnce(&mut BTreeMap<u8, Digest>)) {
        let mut pcrs = registers();
        change(&mut pcrs);
        let nonce = quote_nonce(&NONCE, &self.verifier, &self.prover);
        self.evidence.quote = self.chip.quote(nonce.as_bytes(), &pcrs);
    }
}

#[test]
fn first_sight_with_a_known_release_is_trusted_and_recorded() {
    let scene = scene();
    let (judgement, baseline) = scene.judge(None).unwrap();
    assert_eq!(
        (judgement, &baseline.pcrs),
        (NodeAssurance::Trusted, &registers())
    );
    // From then on no credential is needed.
    let mut later = scene;
    later.evidence.activation = None;
    assert_eq!(later.judge(None), Err(Refusal::Unproven));
    assert_eq!(
        later.judge(Some(&baseline)).unwrap(),
        (NodeAssurance::Trusted, baseline)
    );
}

#[test]
fn first_sight_with_an_unknown_image_records_nothing_but_the_keys() {
    let mut scene = scene();
    scene.boots(|pcrs| {
        pcrs.insert(IMAGE, Digest::of(b"other"));
    });
    let (judgement, baseline) = scene.judge(None).unwrap();
    assert_eq!(judgement, NodeAssurance::Changed(vec![11]));
    assert!(baseline.pcrs.is_empty());
    scene.boots(|_| {});
    let (judgement, baseline) = scene.judge(Some(&baseline)).unwrap();
    assert_eq!((judgement, baseline.pcrs), (NodeAssurance::Trusted, registers()));
}

#[test]
fn each_register_that_differs_is_named() {
    let mut scene = scene();
    let (_, baseline) = scene.judge(None).unwrap();
    for pcr in QUOTED.iter() {
        scene.boots(|pcrs| {
            pcrs.insert(pcr, Digest::of(b"other"));
        });
        let (judgement, kept) = scene.judge(Some(&baseline)).unwrap();
        assert_eq!(judgement, NodeAssurance::Changed(vec![pcr]));
        assert_eq!(kept, baseline, "what is remembered does not follow");
    }
    scene.boots(|pcrs| pcrs.values_mut().for_each(|value| *value = Digest::of(b"other")));
    let (judgement, _) = scene.judge(Some(&baseline)).unwrap();
    assert_eq!(judgement.to_string(), "changed: PCR 0,1,2,3,4,5,6,7,11,12");
}

#[test]
fn update_to_another_release_may_change_what_was_loaded_and_nothing_else() {
    let mut scene = scene();
    let (_, baseline) = scene.judge(None).unwrap();
    let update = |pcrs: &mut BTreeMap<u8, Digest>| {
        pcrs.insert(IMAGE, Digest::of(b"2"));
        pcrs.insert(4, Digest::of(b"loader 2"));
        pcrs.insert(12, Digest::of(b"command line 2"));
    };
    scene.boots(|pcrs| {
        update(pcrs);
        pcrs.insert(7, Digest::of(b"secure boot off"));
    });
    let (judgement, kept) = scene.judge(Some(&baseline)).unwrap();
    assert_eq!((judgement, &kept), (NodeAssurance::Changed(vec![7]), &baseline));
    scene.boots(update);
    let (judgement, updated) = scene.judge(Some(&baseline)).unwrap();
    assert_eq!(judgement, NodeAssurance::Trusted);
    // Within the new release they are compared again.
    scene.boots(|pcrs| {
        update(pcrs);
        pcrs.insert(4, Digest::of(b"loader 3"));
    });
    let (judgement, _) = scene.judge(Some(&updated)).unwrap();
    assert_eq!(judgement, NodeAssurance::Changed(vec![4]));
}

#[test]
fn another_tpm_key_or_quote_is_refused_by_its_name() {
    let good = scene();
    let (_, baseline) = good.judge(None).unwrap();
    let with = |alter: &dyn Fn(&mut Scene)| {
        let mut scene = scene();
        alter(&mut scene);
        scene.judge(None).unwrap_err()
    };
    assert!(matches!(
        with(&|scene| scene.evidence.vouched_ek = Some(Digest::of(b"x"))),
        Refusal::OtherTpm(_)
    ));
    assert_eq!(with(&|scene| scene.evidence.ak.push(0)), Refusal::Key);
    // A secret that was made for another pair of keys, or a proof that another node gave or was given.
    let activation = |alter: &dyn Fn(&mut Activation, &Scene)| {
        with(&|scene: &mut Scene| {
            let mut activation = scene.evidence.activation.take().unwrap();
            alter(&mut activation, scene);
            scene.evidence.activation = Some(activation);
        })
    };
    assert_eq!(activation(&|it, _| it.ek = Digest::of(b"x")), Refusal::Unproven);
    assert_eq!(activation(&|it, _| it.ak = Digest::of(b"x")), Refusal::Unproven);
    assert_eq!(
        activation(&|it, _| it.proof = Digest::of(&SECRET)),
        Refusal::Unproven
    );
    assert_eq!(
        activation(&|it, scene| it.proof = activation_proof(&SECRET, &scene.prover, &peer(9))),
        Refusal::Unproven
    );
    // The quote of a good machine, handed on by another one.
    assert_eq!(with(&|scene| scene.prover = peer(9)), Refusal::Unproven);
    let mut relayed = scene();
    relayed.prover = peer(9);
    relayed.evidence.activation.as_mut().unwrap().proof =
        activation_proof(&SECRET, &relayed.verifier, &peer(9));
    assert_eq!(relayed.judge(None), Err(Refusal::Quote(QuoteRefusal::Nonce)));
    // Another chip than was seen first.
    let mut replaced = scene();
    replaced.evidence.vouched_ek = None;
    assert!(
        matches!(replaced.judge(Some(&baseline)), Err(Refusal::OtherTpm(_))),
        "its key differs"
    );
    let mut old = good;
    old.evidence.nonce = [9; 32];
    assert_eq!(
        old.judge(Some(&baseline)),
        Err(Refusal::Quote(QuoteRefusal::Nonce))
    );
}

#[test]
fn without_a_release_a_proven_tpm_is_a_tpm() {
    let scene = scene();
    let (judgement, baseline) = judge(
        &scene.verifier,
        &scene.prover,
        &scene.evidence,
        None,
        None,
        &Releases::default(),
    )
    .unwrap();
    assert_eq!(judgement, NodeAssurance::Tpm);
    assert!(
        baseline.pcrs.is_empty(),
        "the first boot with a release is what counts"
    );
}

#[test]
fn downgrade_to_an_older_genuine_image_is_old_and_leaves_what_is_recorded() {
    let mut scene = scene();
    let mut releases = releases();
    releases.learn(list("2", &[("2", Digest::of(b"2"))]));
    let judge = |scene: &Scene, known: Option<&Baseline>| {
        judge(
            &scene.verifier,
            &scene.prover,
            &scene.evidence,
            known,
            None,
            &releases,
        )
        .unwrap()
    };
    let old = NodeAssurance::Old("1".into());
    let (judgement, first) = judge(&scene, None);
    assert_eq!(judgement, old);
    assert!(first.pcrs.is_empty(), "an old release is no boot to compare with");
    let update = |pcrs: &mut BTreeMap<u8, Digest>| {
        pcrs.extend([(IMAGE, Digest::of(b"2")), (4, Digest::of(b"loader 2"))])
    };
    scene.boots(update);
    let (judgement, updated) = judge(&scene, Some(&first));
    assert_eq!(judgement, NodeAssurance::Trusted);
    // The older image is put back, with its own boot loader.
    scene.boots(|_| {});
    let (judgement, kept) = judge(&scene, Some(&updated));
    assert_eq!((judgement, &kept), (old, &updated));
    scene.boots(|pcrs| pcrs.extend([(7, Digest::of(b"secure boot off"))]));
    assert_eq!(judge(&scene, Some(&updated)).0, NodeAssurance::Changed(vec![7]));
    scene.boots(update);
    assert_eq!(
        judge(&scene, Some(&updated)),
        (NodeAssurance::Trusted, updated.clone())
    );
}

/// What is recorded once the firmware was updated, and its values accepted.
fn firmware() -> Registers {
    let mut pcrs = registers();
    pcrs.insert(0, Digest::of(b"firmware 2"));
    Registers(pcrs)
}

#[test]
fn accepted_registers_are_trusted_and_those_from_before_are_changed() {
    let mut scene = scene();
    let (_, before) = scene.judge(None).unwrap();
    let (judgement, baseline) = scene.judge_accepted(Some(&before), &firmware());
    assert_eq!(
        judgement,
        NodeAssurance::Changed(vec![0]),
        "the old firmware counts no more, and neither does who was not asked meanwhile"
    );
    scene.boots(|pcrs| pcrs.clone_from(&firmware().0));
    let (judgement, baseline) = scene.judge_accepted(Some(&baseline), &firmware());
    assert_eq!(
        (judgement, &baseline.pcrs),
        (NodeAssurance::Trusted, &firmware().0)
    );
    // Whatever else comes is not what was accepted.
    scene.boots(|pcrs| {
        pcrs.clone_from(&firmware().0);
        pcrs.insert(0, Digest::of(b"firmware 3"));
    });
    let (judgement, kept) = scene.judge_accepted(Some(&baseline), &firmware());
    assert_eq!((judgement, kept), (NodeAssurance::Changed(vec![0]), baseline));
}

#[test]
fn member_that_is_seen_first_is_compared_with_what_was_accepted_and_not_trusted_on_first_use() {
    let mut scene = scene();
    let (judgement, baseline) = scene.judge_accepted(None, &firmware());
    assert_eq!(
        (judgement, &baseline.pcrs),
        (NodeAssurance::Changed(vec![0]), &firmware().0)
    );
    scene.boots(|pcrs| pcrs.clone_from(&firmware().0));
    assert_eq!(scene.judge_accepted(None, &firmware()).0, NodeAssurance::Trusted);
}

#[test]
fn no_acceptance_makes_an_image_known_and_registers_that_it_does_not_name_never_fit() {
    let mut scene = scene();
    let (_, baseline) = scene.judge(None).unwrap();
    let mut image = registers();
    image.insert(IMAGE, Digest::of(b"altered"));
    scene.boots(|pcrs| pcrs.clone_from(&image));
    let (judgement, _) = scene.judge_accepted(Some(&baseline), &Registers(image));
    assert_eq!(judgement, NodeAssurance::Changed(vec![IMAGE]));
    scene.boots(|_| {});
    let mut part = registers();
    part.remove(&7);
    let (judgement, _) = scene.judge_accepted(Some(&baseline), &Registers(part));
    assert_eq!(judgement, NodeAssurance::Changed(vec![7]));
}

#[test]
fn update_after_an_acceptance_is_not_taken_back_by_it() {
    let mut scene = scene();
    scene.boots(|pcrs| pcrs.clone_from(&firmware().0));
    let (_, accepted) = scene.judge_accepted(None, &firmware());
    let update = |pcrs: &mut BTreeMap<u8, Digest>| {
        pcrs.clone_from(&firmware().0);
        pcrs.extend([(IMAGE, Digest::of(b"2")), (4, Digest::of(b"loader 2"))]);
    };
    scene.boots(update);
    let (judgement, updated) = scene.judge_accepted(Some(&accepted), &firmware());
    assert_eq!(judgement, NodeAssurance::Trusted);
    // Another boot loader within the release, with the acceptance still standing.
    scene.boots(|pcrs| {
        update(pcrs);
        pcrs.insert(4, Digest::of(b"loader 3"));
    });
    let (judgement, _) = scene.judge_accepted(Some(&updated), &firmware());
    assert_eq!(judgement, NodeAssurance::Changed(vec![4]));
}

/// What an attacker may turn.
#[derive(Debug, Clone, Copy)]
enum Part {
    Nonce,
    Ek,
    Ak,
    Attest,
    Signature,
    Value,
    Proof,
    Verifier,
    Prover,
}

fn part() -> impl Strategy<Value = Part> {
    use Part::*;
    prop::sample::select(vec![
        Nonce, Ek, Ak, Attest, Signature, Value, Proof, Verifier, Prover,
    ])
}

fn flip(digest: &mut Digest, at: usize) {
    let mut bytes = *digest.as_bytes();
    bytes[at % 32] ^= 1;
    *digest = Digest::from(bytes);
}

proptest! {
    #[test]
    fn invariant_nothing_altered_is_trusted(part in part(), at in any::<prop::sample::Index>(), known in any::<bool>()) {
        let mut scene = scene();
        let (_, baseline) = scene.judge(None).unwrap();
        let known = known.then_some(&baseline);
        let evidence = &mut scene.evidence;
        match part {
            Part::Nonce => evidence.nonce[at.index(32)] ^= 1,
            Part::Ek => { evidence.vouched_ek = None; flip(&mut evidence.ek, at.index(32)); }
            Part::Ak => { let at = at.index(evidence.ak.len()); evidence.ak[at] ^= 1; }
            Part::Attest => { let at = at.index(evidence.quote.attest.len()); evidence.quote.attest[at] ^= 1; }
            Part::Signature => { let at = at.index(evidence.quote.signature.len()); evidence.quote.signature[at] ^= 1; }
            Part::Value => {
                let at = at.index(evidence.quote.pcrs.len());
                evidence.quote.pcrs.values_mut().nth(at).into_iter().for_each(|value| flip(value, at));
            }
            Part::Proof => {
                let Some(activation) = &mut evidence.activation else { return Ok(()) };
                flip(&mut activation.proof, at.index(32));
                prop_assert_eq!(scene.judge(None), Err(Refusal::Unproven));
                return Ok(());
            }
            Part::Verifier => scene.verifier = peer(7),
            Part::Prover => scene.prover = peer(7),
        }
        prop_assert!(scene.judge(known).is_err(), "{part:?}");
    }

    #[test]
    fn invariant_registers_that_differ_are_never_trusted(
        altered in prop::collection::btree_set(0usize..10, 1..4), known in any::<bool>(),
    ) {
        let mut scene = scene();
        let (_, baseline) = scene.judge(None).unwrap();
        let numbers: Vec<u8> = QUOTED.iter().collect();
        let altered: Vec<u8> = altered.into_iter().map(|at| numbers[at]).collect();
        scene.boots(|pcrs| pcrs.extend(altered.iter().map(|pcr| (*pcr, Digest::of(b"other")))));
        let (judgement, kept) = scene.judge(known.then_some(&baseline)).unwrap();
        if known {
            prop_assert_eq!(judgement, NodeAssurance::Changed(altered));
            prop_assert_eq!(kept, baseline);
        } else {
            prop_assert_eq!(judgement == NodeAssurance::Trusted, !altered.contains(&IMAGE));
        }
    }

    /// Whatever the judges saw before, they agree on the values that were accepted, and on those alone.
    #[test]
    fn invariant_all_judges_agree_on_what_was_accepted(
        seen in prop::collection::vec((0u8..10, 0u8..3), 0..4), altered in prop::collection::btree_set(0usize..10, 0..3),
    ) {
        let numbers: Vec<u8> = QUOTED.iter().collect();
        let mut judges = vec![None];
        let mut scene = scene();
        for (at, value) in seen {
            scene.boots(|pcrs| pcrs.extend([(numbers[usize::from(at)], Digest::of(&[value]))]));
            let before = judges.last().cloned().flatten();
            judges.push(Some(scene.judge(before.as_ref()).unwrap().1));
        }
        let altered: Vec<u8> = altered.into_iter().map(|at| numbers[at]).collect();
        scene.boots(|pcrs| {
            pcrs.clone_from(&firmware().0);
            pcrs.extend(altered.iter().map(|pcr| (*pcr, Digest::of(b"other"))));
        });
        let expected = match altered.is_empty() {
            true => NodeAssurance::Trusted,
            false => NodeAssurance::Changed(altered),
        };
        for judge in judges {
            let (judgement, first) = scene.judge_accepted(judge.as_ref(), &firmware());
            prop_assert_eq!(&judgement, &expected);
            // Over a restart too: what is kept is all that the next judgement goes by.
            let (again, kept) = scene.judge_accepted(Some(&first), &firmware());
            prop_assert_eq!((again, kept), (judgement, first));
        }
    }

    /// Whoever comes and goes, and whatever they answer: each member has at most one question out, and waits for the next.
    #[test]
    fn invariant_questions_are_bounded(acts in prop::collection::vec((0u8..4, 0u8..8, 0u64..90_000), 1..200)) {
        let mut attestations = Attestations::default();
        let mut asked: BTreeMap<PeerId, Millis> = BTreeMap::new();
        let mut now = Millis(0);
        for (act, n, wait) in acts {
            now = now.after(wait);
            let peer = peer(n);
            match act {
                0 => attestations.connected(&peer, now),
                1 => attestations.disconnected(&peer),
                2 => { if let Some(known) = attestations.known.get_mut(&peer) { known.fail(now); } }
                _ => {}
            }
            let due = attestations.due(now, |_| true, |_| true);
            prop_assert!(due.len() <= AT_ONCE);
            for (peer, _) in due {
                if let Some(before) = asked.insert(peer, now) {
                    prop_assert!(now.since(before) >= AGAIN_MS, "{before:?} {now:?}");
                }
            }
            prop_assert!(attestations.known.len() <= 8);
        }
    }
}
