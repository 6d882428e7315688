//! Time that passes evenly, whatever happens to the wall clock.
//!
//! What lives here: the process's one timeline ([`now`]), which follows CLOCK_BOOTTIME and
//! continues where the process before it was ([`install`]), and its conversion to wall-clock times
//! for people ([`wall_of`]).
//!
//! What never may: what anything waits for, and when it is due (mvm-model takes times as
//! arguments). Certificates and the audit log use the wall clock: they call [`wall`].

use mvm_model::Millis;
use mvm_model::timeline::{Anchor, Moment};
use parking_lot::{Mutex, RwLock};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use std::{fs, io};

/// How often the present moment is written to the file, so that the timeline continues after it
/// when the host is booted again.
const NOTE: Duration = Duration::from_secs(300);
/// From this difference on, in ms, the wall clock counts as stepped; less arises between reading
/// two clocks.
const STEP: u64 = 1000;

/// The process's timeline. Without [`install`] it begins with the wall clock when first used.
static CLOCK: LazyLock<RwLock<Clock>> =
    LazyLock::new(|| RwLock::new(Clock::new(Anchor::first(moment()), None)));
/// Held while the timeline is written to its file, so that writers follow each other.
static WRITING: Mutex<()> = Mutex::new(());
static BOOT_ID: LazyLock<String> = LazyLock::new(|| {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
});

/// Returns the time on this process's timeline, in ms. It never goes back, and passes as time does,
/// including suspended time. Its values equal the wall clock's for as long as nobody steps that.
pub fn now() -> Millis {
    let clock = CLOCK.read();
    clock.anchor.time_of(&moment())
}

/// Returns the wall clock, in milliseconds since the Unix epoch.
pub fn wall() -> Millis {
    since_epoch().as_millis() as Millis
}

/// Returns the wall clock to the nanosecond, to which a guest's is set; zero before the Unix epoch.
#[allow(clippy::disallowed_methods)]
pub fn since_epoch() -> Duration {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default()
}

/// Returns when, by the present wall clock, a time of the timeline was or will be, in ms. Two calls
/// return the same unless the wall clock was stepped in between.
pub fn wall_of(time: Millis) -> Millis {
    let clock = CLOCK.read();
    time.saturating_add_signed(clock.offset(&moment()))
}

/// Continues the timeline that `file` holds, and writes it there from now on. It must be called
/// before anything asks for the time, and only by the process that alone may write to the file.
/// Errors: those of reading and writing the file.
pub fn install(file: &Path) -> io::Result<()> {
    let writing = WRITING.lock();
    let clock = Clock::open(file, moment())?;
    *CLOCK.write() = clock;
    drop(writing);
    std::thread::Builder::new().name("clock".to_owned()).spawn(|| {
        loop {
            std::thread::sleep(NOTE);
            note();
        }
    })?;
    Ok(())
}

/// Writes the present moment to the file, if the timeline has one.
pub fn note() {
    if let Err(error) = note_in(&CLOCK, &WRITING, moment, write) {
        tracing::warn!(%error, "cannot write the clock's file");
    }
}

/// Writes the present moment to the clock's file, and only then moves the clock there. Readers of
/// the clock do not wait for the disk.
fn note_in(
    clock: &RwLock<Clock>,
    writing: &Mutex<()>,
    now: impl FnOnce() -> Moment,
    write: impl FnOnce(&Path, &Anchor) -> io::Result<()>,
) -> io::Result<()> {
    let _turn = writing.lock();
    let held = clock.read();
    let Some(file) = held.file.clone() else { return Ok(()) };
    let anchor = held.anchor.moved_to(now());
    drop(held);
    write(&file, &anchor)?;
    clock.write().anchor = anchor;
    Ok(())
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

fn moment() -> Moment {
    // The C library is bypassed: a library that intercepts it (faketime) may change the wall clock,
    // which is what tests do, but not the time that passes.
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let since_boot = since.tv_sec as u64 * 1000 + since.tv_nsec as u64 / 1_000_000;
    Moment { boot_id: BOOT_ID.clone(), since_boot, wall: wall() }
}

struct Clock {
    anchor: Anchor,
    file: Option<PathBuf>,
    /// How far the wall clock is ahead of the timeline, in ms, as of its last step.
    ahead: AtomicI64,
}

impl Clock {
    fn new(anchor: Anchor, file: Option<PathBuf>) -> Clock {
        let ahead = difference(anchor.moment.wall, anchor.time);
        Clock { anchor, file, ahead: AtomicI64::new(ahead) }
    }

    fn open(file: &Path, now: Moment) -> io::Result<Clock> {
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
        Ok(Clock::new(anchor, Some(file.to_owned())))
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

fn difference(a: Millis, b: Millis) -> i64 {
    i64::try_from(i128::from(a) - i128::from(b)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boot: &str, since_boot: Millis, wall: Millis) -> Moment {
        Moment { boot_id: boot.to_owned(), since_boot, wall }
    }

    #[test]
    fn the_next_process_goes_on_with_the_same_timeline() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("clock.json");
        let first = Clock::open(&file, at("a", 100, 1_000_000)).expect("opened");
        assert_eq!(first.anchor.time, 1_000_000);
        // The wall clock was put forward by an hour meanwhile.
        let second = Clock::open(&file, at("a", 350, 4_600_250)).expect("opened");
        assert_eq!(second.anchor.time, 1_000_250);
        assert_eq!(second.anchor.time_of(&at("a", 400, 0)), 1_000_300);
        // The host was booted again after 10 s, with the same wrong clock.
        let third = Clock::open(&file, at("b", 5, 4_610_250)).expect("opened");
        assert_eq!(third.anchor.time, 1_010_250);
        let mode = fs::metadata(&file).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// Who asks for the time does not wait for the disk, and writers follow each other.
    #[test]
    fn the_time_can_be_read_while_it_is_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("clock.json");
        let clock = Clock::open(&file, at("a", 100, 1_000_000)).expect("opened");
        let (clock, writing) = (RwLock::new(clock), Mutex::new(()));
        let write_slowly = |file: &Path, anchor: &Anchor| {
            assert_eq!(clock.try_read().expect("readable").anchor.time, 1_000_000);
            assert!(clock.try_write().is_some(), "the clock is held");
            assert!(writing.try_lock().is_none(), "another may write");
            write(file, anchor)
        };
        note_in(&clock, &writing, || at("a", 150, 0), write_slowly).expect("written");
        assert_eq!(clock.read().anchor.time, 1_000_050);
        let full = |_: &Path, _: &Anchor| Err(io::ErrorKind::StorageFull.into());
        note_in(&clock, &writing, || at("a", 200, 0), full).expect_err("no space");
        assert_eq!(clock.read().anchor.time, 1_000_050, "the file is never behind");
        let again = Clock::open(&file, at("a", 150, 0)).expect("opened");
        assert_eq!(again.anchor.time, 1_000_050);
    }

    #[test]
    fn a_damaged_file_is_begun_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("clock.json");
        fs::write(&file, "{").expect("written");
        let clock = Clock::open(&file, at("a", 100, 1_000_000)).expect("opened");
        assert_eq!(clock.anchor.time, 1_000_000);
        let again = Clock::open(&file, at("a", 200, 0)).expect("opened");
        assert_eq!(again.anchor.time, 1_000_100);
    }

    #[test]
    fn times_for_people_follow_the_wall_clock_and_do_not_waver() {
        let clock = Clock::new(Anchor::first(at("a", 0, 1_000_000)), None);
        assert_eq!(clock.offset(&at("a", 500, 1_000_500)), 0);
        assert_eq!(clock.offset(&at("a", 500, 1_000_501)), 0, "one clock was read a little later");
        let hour = 3_600_000;
        assert_eq!(clock.offset(&at("a", 600, 1_000_600 + hour)), hour as i64);
        assert_eq!(clock.offset(&at("a", 700, 1_000_701 + hour)), hour as i64);
        assert_eq!(clock.offset(&at("a", 800, 800)), -1_000_000);
    }

    #[test]
    fn the_timeline_begins_with_the_wall_clock() {
        assert!(now().abs_diff(wall()) < STEP);
        assert_eq!(wall_of(5), 5);
    }
}
