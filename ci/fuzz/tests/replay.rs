//! Every target stands its corpus and a bounded number of mutations, the same ones in every run.
#![allow(clippy::unwrap_used)]

use beemesh_ci_fuzz::mutate::{MOST, Mutator};
use beemesh_ci_fuzz::{Target, corpus};

/// Inputs for each target: a few seconds together.
const INPUTS: usize = 3_000;

#[test]
fn every_target_stands_its_corpus_and_mutations_of_it() {
    for target in Target::ALL {
        let inputs = corpus(target).unwrap();
        assert!(inputs.len() > 20, "{target:?}: {} inputs", inputs.len());
        inputs.iter().for_each(|input| target.run(input));
        let mut mutator = Mutator::new(inputs, 1);
        for _ in 0..INPUTS {
            let input = mutator.next_input();
            assert!(input.len() <= MOST);
            target.run(&input);
        }
    }
}

#[test]
fn same_seed_gives_the_same_inputs() {
    let run = |seed| {
        let mut mutator = Mutator::new(corpus(Target::Joinpack).unwrap(), seed);
        (0..50).map(|_| mutator.next_input()).collect::<Vec<_>>()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
