//! Limits the rate of warnings and errors about each machine.

use super::sink::Sink;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt::{Debug, Write as _};
use std::io::Write;
use std::time::{Duration, Instant};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// This many lines may be written in a burst.
const AT_ONCE: u32 = 50;
/// After that, one line may be written per this time.
const EACH: Duration = Duration::from_secs(2);
/// The most machines that are tracked at once.
const MOST: usize = 4096;

/// The limiter of lines.
pub struct Limit {
    buckets: Mutex<HashMap<String, Bucket>>,
    /// The log, where the number of suppressed lines is reported.
    to: Sink,
    json: bool,
}

/// The token bucket of one machine.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: u32,
    since: Instant,
    /// The number of suppressed lines.
    held: u64,
}

impl Bucket {
    fn full(now: Instant) -> Bucket {
        Bucket { left: AT_ONCE, since: now, held: 0 }
    }

    fn fill(&mut self, now: Instant) {
        let more = now.saturating_duration_since(self.since).as_nanos() / EACH.as_nanos();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        self.since += EACH.saturating_mul(more.min(AT_ONCE));
        if more >= AT_ONCE {
            self.since = now;
        }
        self.left = self.left.saturating_add(more).min(AT_ONCE);
    }

    /// Takes a token. Returns the number of lines suppressed before; `None` where this line is to
    /// be suppressed.
    fn take(&mut self, now: Instant) -> Option<u64> {
        self.fill(now);
        if self.left == 0 {
            self.held += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.held))
    }
}

impl Limit {
    /// Makes a limiter that has seen no line.
    pub fn new(to: Sink, json: bool) -> Limit {
        Limit { buckets: Mutex::default(), to, json }
    }

    fn admits(&self, of: String, now: Instant) -> bool {
        let taken = {
            let mut buckets = self.buckets.lock();
            if buckets.len() >= MOST && !buckets.contains_key(&of) {
                // A machine with a full bucket can be forgotten. Where there is none, all are
                // forgotten.
                buckets.values_mut().for_each(|bucket| bucket.fill(now));
                buckets.retain(|_, bucket| bucket.left < AT_ONCE);
                if buckets.len() >= MOST {
                    buckets.clear();
                }
            }
            buckets.entry(of.clone()).or_insert_with(|| Bucket::full(now)).take(now)
        };
        if let Some(held @ 1..) = taken {
            let words = format!("{held} lines about {of} were left out: they came too fast");
            let line = match self.json {
                true => serde_json::json!({ "level": "WARN", "message": words }).to_string(),
                false => format!("WARN {words}"),
            };
            let _ = self.to.clone().write_all(format!("{line}\n").as_bytes());
        }
        taken.is_some()
    }
}

impl<S: Subscriber> Filter<S> for Limit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        match of(event) {
            Some(of) => self.admits(of, Instant::now()),
            None => true,
        }
    }
}

/// Returns the key of a line's bucket: the machine in trouble, or the target of a foreign crate's
/// line that names no machine.
fn of(event: &Event<'_>) -> Option<String> {
    let mut words = Words::default();
    event.record(&mut words);
    let target = words.target.as_deref().unwrap_or_else(|| event.metadata().target());
    if !target.starts_with("mvm") {
        return Some(target.to_owned());
    }
    words.machine.filter(|_| *event.metadata().level() <= Level::WARN)
}

/// The fields of an event that say what it is about.
#[derive(Default)]
struct Words {
    machine: Option<String>,
    /// The target of a line that came through the log crate.
    target: Option<String>,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let place = match field.name() {
            "instance" | "machine" | "id" | "job" if self.machine.is_none() => &mut self.machine,
            "log.target" => &mut self.target,
            _ => return,
        };
        let mut words = String::new();
        let _ = write!(words, "{value:?}");
        *place = Some(words.trim_matches('"').chars().take(200).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_may_speak_again_after_a_while_and_what_was_left_out_is_told() {
        let now = Instant::now();
        let mut bucket = Bucket::full(now);
        for _ in 0..AT_ONCE {
            assert_eq!(bucket.take(now), Some(0));
        }
        assert_eq!((bucket.take(now), bucket.take(now)), (None, None));
        assert_eq!(bucket.take(now + EACH), Some(2));
        assert_eq!(bucket.take(now + EACH), None);
        // A bucket never holds more than one burst.
        let later = now + EACH * 1000;
        let taken = (0..200).filter(|_| bucket.take(later).is_some()).count();
        assert_eq!(taken, AT_ONCE as usize);
    }

    #[test]
    fn ever_new_names_take_no_more_memory() {
        let limit = Limit::new(Sink::new(std::io::sink()), false);
        let now = Instant::now();
        (0..3 * MOST).for_each(|number| _ = limit.admits(number.to_string(), now));
        assert!(limit.buckets.lock().len() <= MOST);
    }
}
