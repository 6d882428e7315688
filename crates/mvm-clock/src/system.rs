//! The system's clock: a timeline that follows CLOCK_BOOTTIME, and the file in which it goes on.

use mvm_model::Timestamp;
use mvm_model::timeline::{Anchor, Moment};
use parking_lot::{Mutex, RwLock};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;
use std::{fs, io};

/// How often the present moment is written to the file, so that the timeline continues after it
/// when the host is booted again.
const NOTE: Duration = Duration::from_secs(300);
/// From this difference on, in ms, the wall clock counts as stepped; less arises between reading
/// two clocks.
pub(crate) const STEP: u64 = 1000;

/// The boot of the host, which stays the same for as long as a process lives.
static BOOT_ID: LazyLock<String> = LazyLock::new(|| {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
});

/// The system's clock with one timeline.
#[derive(Debug)]
pub(crate) struct System {
    timeline: RwLock<Timeline>,
    /// Held while the timeline is written to its file, so that writers follow each other.
    writing: Mutex<()>,
}

impl System {
    /// Begins a timeline that is in no file.
    pub fn first() -> System {
        System::of(Timeline::new(Anchor::first(moment()), None))
    }

    /// Continues the timeline in the file, and keeps the file up to date until the clock is dropped.
    pub fn open(file: &Path) -> io::Result<Arc<System>> {
        let system = Arc::new(System::of(Timeline::open(file, moment())?));
        let noted = Arc::downgrade(&system);
        std::thread::Builder::new().name("clock".to_owned()).spawn(move || keep(&noted))?;
        Ok(system)
    }

    fn of(timeline: Timeline) -> System {
        System { timeline: RwLock::new(timeline), writing: Mutex::default() }
    }

    pub fn now(&self) -> Timestamp {
        let timeline = self.timeline.read();
        timeline.anchor.time_of(&moment())
    }

    pub fn wall_of(&self, time: Timestamp) -> Timestamp {
        let timeline = self.timeline.read();
        stepped(time, timeline.offset(&moment()))
    }

    /// Writes the present moment to the timeline's file, and only then moves the timeline there.
    /// Readers of the clock do not wait for the disk.
    fn note(
        &self,
        now: impl FnOnce() -> Moment,
        write: impl FnOnce(&Path, &Anchor) -> io::Result<()>,
    ) -> io::Result<()> {
        let _turn = self.writing.lock();
        let held = self.timeline.read();
        let Some(file) = held.file.clone() else { return Ok(()) };
        let anchor = held.anchor.moved_to(now());
        drop(held);
        write(&file, &anchor)?;
        self.timeline.write().anchor = anchor;
        Ok(())
    }
}

/// Writes the present moment to the clock's file from time to time, for as long as anybody has the
/// clock.
fn keep(system: &Weak<System>) {
    loop {
        std::thread::sleep(NOTE);
        let Some(system) = system.upgrade() else { return };
        if let Err(error) = system.note(moment, write) {
            tracing::warn!(%error, "cannot write the clock's file");
        }
    }
}

fn write(file: &Path, anchor: &Anchor) -> io::Result<()> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    let mut fresh = tempfile::NamedTempFile::new_in(dir)?;
    fresh.write_all(serde_json::to_string(anchor)?.as_bytes())?;
    fresh.as_file().set_permissions(fs::Permissions::from_mode(0o600))?;
    fresh.as_file().sync_all()?;
    fresh.persist(file)?;
    Ok(())
}

/// Returns the wall clock as the time since the Unix epoch; zero before that.
#[allow(clippy::disallowed_methods)] // Everybody else is handed a clock.
pub(crate) fn since_epoch() -> Duration {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default()
}

fn moment() -> Moment {
    // The C library is bypassed: a library that intercepts it (faketime) may change the wall clock,
    // which is what tests do, but not the time that passes.
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let since_boot = since.tv_sec as u64 * 1000 + since.tv_nsec as u64 / 1_000_000;
    Moment { boot_id: BOOT_ID.clone(), since_boot, wall: Timestamp::EPOCH + since_epoch() }
}

#[derive(Debug)]
struct Timeline {
    anchor: Anchor,
    file: Option<PathBuf>,
    /// How far the wall clock is ahead of the timeline, in ms, as of its last step.
    ahead: AtomicI64,
}

impl Timeline {
    fn new(anchor: Anchor, file: Option<PathBuf>) -> Timeline {
        let ahead = difference(anchor.moment.wall, anchor.time);
        Timeline { anchor, file, ahead: AtomicI64::new(ahead) }
    }

    fn open(file: &Path, now: Moment) -> io::Result<Timeline> {
        let known = match fs::read(file) {
            Ok(text) => serde_json::from_slice::<Anchor>(&text)
                .inspect_err(|error| {
                    let file = file.display();
                    tracing::warn!("{file} cannot be read: {error}; time goes by the wall clock");
                })
                .ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let anchor = match known {
            Some(anchor) => anchor.moved_to(now),
            None => Anchor::first(now),
        };
        write(file, &anchor)?;
        Ok(Timeline::new(anchor, Some(file.to_owned())))
    }

    fn offset(&self, now: &Moment) -> i64 {
        let (known, ahead) =
            (self.ahead.load(Ordering::Relaxed), difference(now.wall, self.anchor.time_of(now)));
        if known.abs_diff(ahead) < STEP {
            return known;
        }
        if self.ahead.swap(ahead, Ordering::Relaxed) == known {
            let by_ms = ahead - known;
            tracing::warn!(
                by_ms,
                "the wall clock was stepped; leases and deadlines stay as they are"
            );
        }
        ahead
    }
}

/// Returns how many ms `a` is after `b`, negative where it is before.
pub(crate) fn difference(a: Timestamp, b: Timestamp) -> i64 {
    i64::try_from(i128::from(a.as_millis()) - i128::from(b.as_millis())).unwrap_or(0)
}

/// Returns the time that is so many ms later, or earlier where they are negative.
pub(crate) fn stepped(time: Timestamp, by: i64) -> Timestamp {
    Timestamp::from_millis(time.as_millis().saturating_add_signed(by))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn at(boot: &str, since_boot: u64, wall: u64) -> Moment {
        Moment { boot_id: boot.to_owned(), since_boot, wall: time(wall) }
    }

    #[test]
    fn the_next_process_goes_on_with_the_same_timeline() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("clock.json");
        let first = Timeline::open(&file, at("a", 100, 1_000_000)).expect("opened");
        assert_eq!(first.anchor.time, time(1_000_000));
        // The wall clock was put forward by an hour meanwhile.
        let second = Timeline::open(&file, at("a", 350, 4_600_250)).expect("opened");
        assert_eq!(second.anchor.time, time(1_000_250));
        assert_eq!(second.anchor.time_of(&at("a", 400, 0)), time(1_000_300));
        // The host was booted again after 10 s, with the same wrong clock.
        let third = Timeline::open(&file, at("b", 5, 4_610_250)).expect("opened");
        assert_eq!(third.anchor.time, time(1_010_250));
        let mode = fs::metadata(&file).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// Who asks for the time does not wait for the disk, and writers follow each other.
    #[test]
    fn the_time_can_be_read_while_it_is_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("clock.json");
        let timeline = Timeline::open(&file, at("a", 100, 1_000_000)).expect("opened");
        let clock = System::of(timeline);
        let write_slowly = |file: &Path, anchor: &Anchor| {
            assert_eq!(clock.timeline.try_read().expect("readable").anchor.time, time(1_000_000));
            assert!(clock.timeline.try_write().is_some(), "the clock is held");
            assert!(clock.writing.try_lock().is_none(), "another may write");
            write(file, anchor)
        };
        clock.note(|| at("a", 150, 0), write_slowly).expect("written");
        assert_eq!(clock.timeline.read().anchor.time, time(1_000_050));
        let full = |_: &Path, _: &Anchor| Err(io::ErrorKind::StorageFull.into());
        clock.note(|| at("a", 200, 0), full).expect_err("no space");
        assert_eq!(clock.timeline.read().anchor.time, time(1_000_050), "the file is never behind");
        let again = Timeline::open(&file, at("a", 150, 0)).expect("opened");
        assert_eq!(again.anchor.time, time(1_000_050));
    }

    #[test]
    fn a_damaged_file_is_begun_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("clock.json");
        fs::write(&file, "{").expect("written");
        let clock = Timeline::open(&file, at("a", 100, 1_000_000)).expect("opened");
        assert_eq!(clock.anchor.time, time(1_000_000));
        let again = Timeline::open(&file, at("a", 200, 0)).expect("opened");
        assert_eq!(again.anchor.time, time(1_000_100));
    }

    #[test]
    fn times_for_people_follow_the_wall_clock_and_do_not_waver() {
        let clock = Timeline::new(Anchor::first(at("a", 0, 1_000_000)), None);
        assert_eq!(clock.offset(&at("a", 500, 1_000_500)), 0);
        assert_eq!(clock.offset(&at("a", 500, 1_000_501)), 0, "one clock was read a little later");
        let hour = 3_600_000;
        assert_eq!(clock.offset(&at("a", 600, 1_000_600 + hour)), hour as i64);
        assert_eq!(clock.offset(&at("a", 700, 1_000_701 + hour)), hour as i64);
        assert_eq!(clock.offset(&at("a", 800, 800)), -1_000_000);
    }
}
