//! The plan's invariants over random sizes.

use super::*;
use proptest::prelude::*;

fn invariant_partitions_are_in_bounds(plan: &DiskPlan) {
    // Protective MBR, header and table of 128 entries in front; table and header behind.
    let mut free_from = 34;
    for partition in &plan.partitions {
        assert!(partition.first_lba >= free_from, "overlap: {plan:?}");
        assert_eq!(partition.offset() % ALIGNMENT, 0);
        assert_eq!(partition.size() % ALIGNMENT, 0);
        free_from = partition.last_lba + 1;
    }
    assert!(
        free_from + 33 <= plan.size / SECTOR,
        "no room for the backup table"
    );
}

fn invariant_file_systems_are_fat32(plan: &DiskPlan) {
    for partition in &plan.partitions {
        let clusters = partition.size() / u64::from(partition.fat.cluster);
        let tables = 2 * (clusters * 4 + u64::from(partition.fat.cluster)) + 32 * SECTOR;
        let usable = clusters - tables.div_ceil(u64::from(partition.fat.cluster));
        assert!(
            (65_525..0x0fff_fff5).contains(&usable),
            "{usable} clusters in {partition:?}"
        );
        assert_eq!(u64::from(partition.fat.sectors) * SECTOR, partition.size());
    }
}

proptest! {
    #[test]
    fn every_accepted_size_gives_a_sound_plan(esp in 64u64..=32 << 10, join in 64u64..=32 << 10, seed: [u8; 32]) {
        let plan = plan_usb(UsbSizes { esp: esp << 20, join: join << 20 }, &seed).unwrap();
        invariant_partitions_are_in_bounds(&plan);
        invariant_file_systems_are_fat32(&plan);
        prop_assert_eq!(plan.partition(Role::Esp).unwrap().size(), esp << 20);
        prop_assert_eq!(plan.partition(Role::Join).unwrap().size(), join << 20);
    }

    #[test]
    fn identifiers_follow_the_seed(one: [u8; 32], other: [u8; 32]) {
        prop_assume!(one != other);
        let plan = |seed| plan_usb(UsbSizes::default(), seed).unwrap();
        prop_assert_eq!(plan(&one), plan(&one));
        let ids = |plan: &DiskPlan| {
            let mut ids: Vec<_> = plan.partitions.iter().map(|p| p.guid).collect();
            ids.push(plan.guid);
            ids
        };
        let mut all = ids(&plan(&one));
        all.extend(ids(&plan(&other)));
        let count = all.len();
        all.sort();
        all.dedup();
        prop_assert_eq!(all.len(), count, "two identifiers are the same");
    }
}

#[test]
fn sizes_out_of_bounds_are_refused() {
    let join = 256 << 20;
    for esp in [0, MIN_PARTITION - ALIGNMENT, MAX_PARTITION + ALIGNMENT, u64::MAX] {
        let refused = plan_usb(UsbSizes { esp, join }, &[0; 32]);
        assert_eq!(
            refused,
            Err(PlanError::Size {
                role: Role::Esp,
                size: esp
            })
        );
    }
    let size = MIN_PARTITION + SECTOR;
    let refused = plan_usb(
        UsbSizes {
            esp: join,
            join: size,
        },
        &[0; 32],
    );
    assert_eq!(
        refused,
        Err(PlanError::Unaligned {
            role: Role::Join,
            size
        })
    );
}

#[test]
fn labels_are_those_that_init_and_operators_look_for() {
    assert_eq!(JOIN_LABEL.text(), "BEEMESHJOIN");
    assert_eq!(ESP_LABEL.text(), "BEEMESH-ESP");
    let plan = plan_usb(UsbSizes::default(), &[7; 32]).unwrap();
    assert_eq!(plan.partition(Role::Join).unwrap().name, "BEEMESHJOIN");
}
