//! A timeline passes evenly, whatever the wall clock does.

use mvm_model::Timestamp;
use mvm_model::timeline::{Anchor, Moment};
use proptest::prelude::*;
use std::time::Duration;

fn time(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

const HOUR: u64 = 3_600_000;

/// What happens to a host between two looks at its clocks.
#[derive(Clone, Debug)]
enum Event {
    /// Time passes, in ms.
    Passes(u64),
    /// The wall clock is stepped, by this many ms.
    Steps(i64),
    /// The process starts again and reads its anchor.
    Restarts,
    /// The host is booted again, which takes this many ms.
    Reboots(u64),
}

#[derive(Clone)]
struct Host {
    boot: u64,
    since_boot: u64,
    wall: u64,
}

impl Host {
    fn moment(&self) -> Moment {
        Moment {
            boot_id: self.boot.to_string(),
            since_boot: self.since_boot,
            wall: time(self.wall),
        }
    }

    fn passes(&mut self, by: u64) {
        self.since_boot += by;
        self.wall += by;
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..10 * HOUR).prop_map(Event::Passes),
        (-30 * HOUR as i64..30 * HOUR as i64).prop_map(Event::Steps),
        Just(Event::Restarts),
        (0..HOUR).prop_map(Event::Reboots),
    ]
}

proptest! {
    #[test]
    fn within_a_boot_exactly_what_passes_is_counted(
        events in prop::collection::vec(event(), 0..40),
    ) {
        let mut host = Host { boot: 1, since_boot: 5000, wall: 1_000_000 * HOUR };
        let mut anchor = Anchor::first(host.moment());
        let begun = anchor.time_of(&host.moment());
        let (mut passed, mut rebooted) = (0, false);
        for event in events {
            let before = anchor.time_of(&host.moment());
            match event {
                Event::Passes(by) => {
                    host.passes(by);
                    passed += by;
                    prop_assert_eq!(anchor.time_of(&host.moment()), before + Duration::from_millis(by));
                }
                Event::Steps(by) => {
                    host.wall = host.wall.saturating_add_signed(by);
                    prop_assert_eq!(anchor.time_of(&host.moment()), before);
                }
                Event::Restarts => {
                    anchor = anchor.moved_to(host.moment());
                    prop_assert_eq!(anchor.time_of(&host.moment()), before);
                }
                // The agent wrote its anchor before the host went down, and the clock may be
                // stepped while the host is down. Time continues from there and never goes back.
                Event::Reboots(takes) => {
                    anchor = anchor.moved_to(host.moment());
                    host = Host { boot: host.boot + 1, since_boot: takes / 2, wall: host.wall + takes };
                    anchor = anchor.moved_to(host.moment());
                    prop_assert_eq!(anchor.time_of(&host.moment()), before + Duration::from_millis(takes));
                    rebooted = true;
                }
            }
        }
        if !rebooted {
            prop_assert_eq!(anchor.time_of(&host.moment()), begun + Duration::from_millis(passed));
        }
    }
}

#[test]
fn a_host_that_comes_back_in_1970_does_not_take_time_back() {
    let before = Moment { boot_id: "a".into(), since_boot: 70_000, wall: time(500_000 * HOUR) };
    let anchor = Anchor { moment: before, time: time(500_001 * HOUR) };
    let after = Moment { boot_id: "b".into(), since_boot: 10, wall: time(20) };
    assert_eq!(anchor.time_of(&after), time(500_001 * HOUR));
}

#[test]
fn a_host_that_tells_no_boot_is_taken_for_another_boot() {
    let moment = |since_boot, wall| {
        let wall = time(wall);
        Moment { boot_id: String::new(), since_boot, wall }
    };
    let anchor = Anchor::first(moment(10, HOUR));
    assert_eq!(anchor.time_of(&moment(5, 2 * HOUR)), time(2 * HOUR));
    assert_eq!(anchor.time_of(&moment(500_000, 2 * HOUR)), time(2 * HOUR));
}

#[test]
fn an_anchor_is_read_as_it_was_written() {
    let moment = Moment { boot_id: "a".into(), since_boot: 7, wall: time(9) };
    let text = serde_json::to_string(&Anchor { moment, time: time(8) }).expect("JSON");
    assert_eq!(text, r#"{"boot_id":"a","since_boot":7,"wall":9,"time":8}"#);
    assert_eq!(serde_json::from_str::<Anchor>(&text).expect("an anchor").time, time(8));
}
