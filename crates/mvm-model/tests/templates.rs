//! When a template is given up.

mod support;

use mvm_model::Timestamp;
use mvm_model::template::CloneEnd::{self, Answered, Silent, Unrelated, Unusable};
use mvm_model::template::TemplateHealth;
use proptest::collection::vec;
use proptest::prelude::*;

/// Returns the index of the clone after which the template is given up. Each clone is one of the
/// template that was made at this time.
fn given_up(clones: &[(u64, CloneEnd)]) -> Option<usize> {
    let mut health = TemplateHealth::default();
    clones.iter().position(|(made_at, end)| {
        let (after, over) = health.after(Timestamp::from_millis(*made_at), *end);
        health = after;
        over
    })
}

#[test]
fn two_silent_clones_in_a_row_are_too_many() {
    assert_eq!(given_up(&[(1, Silent), (1, Answered), (1, Silent)]), None);
    assert_eq!(given_up(&[(1, Answered), (1, Silent), (1, Unrelated), (1, Silent)]), Some(3));
    assert_eq!(given_up(&[(1, Unusable)]), Some(0));
    assert_eq!(given_up(&[(1, Unrelated), (1, Unrelated), (1, Unrelated)]), None);
    // Clones of the former template do not count against the new one, whatever the clock says.
    assert_eq!(given_up(&[(2, Silent), (1, Silent)]), None);
    assert_eq!(given_up(&[(1, Silent), (2, Silent), (2, Silent)]), Some(2));
}

proptest! {
    #![proptest_config(support::cases(256))]

    #[test]
    fn a_template_whose_clones_answer_is_kept(
        ends in vec(prop_oneof![Just(Answered), Just(Silent), Just(Unrelated)], 0..40)
    ) {
        let clones: Vec<_> = ends.iter().map(|end| (1, *end)).collect();
        let told: Vec<_> = ends.iter().filter(|end| **end != Unrelated).collect();
        let twice = told.windows(2).any(|two| *two[0] == Silent && *two[1] == Silent);
        prop_assert_eq!(given_up(&clones).is_some(), twice);
    }
}
