//! Mounts the machine's own root over the initial RAM file system: a read-only image below, a
//! writable disk above, an overlay of both.

use super::say;
use mvm_guest::agent::disks::disk;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_change, mount_move, unmount};
use std::fs;
use std::io::{Error, Result};
use std::path::Path;
use std::time::Duration;

/// How long the disks may take to appear.
const DISKS: Duration = Duration::from_secs(10);

/// Mounts everything and makes the overlay this process's root.
pub fn assemble() -> Result<()> {
    virtual_file_systems(Path::new("/"))?;
    open_console();
    load_modules()?;
    for dir in ["/lower", "/scratch", "/new"] {
        fs::create_dir_all(dir)?;
    }
    let root = disk("root", DISKS)?;
    attach(&root, "/lower", "erofs", MountFlags::RDONLY)?;
    match disk("scratch", Duration::ZERO) {
        Ok(scratch) => attach_scratch(&scratch)?,
        Err(_) => attach(Path::new("tmpfs"), "/scratch", "tmpfs", MountFlags::empty())?,
    }
    for dir in ["/scratch/upper", "/scratch/work"] {
        fs::create_dir_all(dir)?;
    }
    let options = c"lowerdir=/lower,upperdir=/scratch/upper,workdir=/scratch/work";
    mount("overlay", "/new", "overlay", MountFlags::empty(), options)
        .map_err(|e| named("mount the overlay", e.into()))?;
    enter(Path::new("/new"))?;
    if let Ok(data) = disk("data", Duration::ZERO) {
        fs::create_dir_all("/data")?;
        attach(&data, "/data", "ext4", MountFlags::NOATIME)?;
    }
    Ok(())
}

/// Unmounts what can be written, as far as possible.
pub fn release() {
    let _ = unmount("/data", UnmountFlags::empty());
    let _ = rustix::mount::mount_remount("/", MountFlags::RDONLY, c"");
    // The scratch disk lies below the overlay, under no path of this root: only the kernel can
    // reach it (SysRq u, admin-guide/sysrq), asynchronously.
    if fs::write("/proc/sysrq-trigger", "u").is_ok() {
        std::thread::sleep(Duration::from_millis(50));
    }
    rustix::fs::sync();
}

/// Opens the console: an initrd may lack its node, and then the kernel starts init without
/// descriptors.
fn open_console() {
    let Ok(console) = fs::OpenOptions::new().read(true).write(true).open("/dev/console") else {
        return;
    };
    let _ = rustix::stdio::dup2_stdin(&console);
    let _ = rustix::stdio::dup2_stdout(&console);
    let _ = rustix::stdio::dup2_stderr(&console);
}

fn named(what: &str, cause: Error) -> Error {
    Error::new(cause.kind(), format!("{what}: {cause}"))
}

fn attach(source: &Path, target: &str, kind: &str, flags: MountFlags) -> Result<()> {
    mount(source, target, kind, flags, c"")
        .map_err(|e| named(&format!("mount {} ({kind}) at {target}", source.display()), e.into()))
}

/// Mounts the scratch disk. Its journal only serves speed, so data need not be ordered, and commits
/// are rare. A disk made by an older host has no journal and refuses these options.
fn attach_scratch(scratch: &Path) -> Result<()> {
    let options = c"data=writeback,commit=60";
    match mount(scratch, "/scratch", "ext4", MountFlags::NOATIME, options) {
        Ok(()) => Ok(()),
        Err(_) => attach(scratch, "/scratch", "ext4", MountFlags::NOATIME),
    }
}

/// Mounts the virtual file systems that every Linux program expects.
fn virtual_file_systems(root: &Path) -> Result<()> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let wanted = [
        ("proc", "proc", safe, c""),
        ("sys", "sysfs", safe, c""),
        ("dev", "devtmpfs", MountFlags::NOSUID, c"mode=0755"),
    ];
    for (dir, kind, flags, options) in wanted {
        let target = root.join(dir);
        fs::create_dir_all(&target)?;
        match mount(kind, &target, kind, flags, options) {
            // The kernel may have mounted devtmpfs by itself.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(e) => return Err(named(&format!("mount {kind}"), e.into())),
        }
    }
    Ok(())
}

/// Makes `new` the root of this process and of all that it starts.
fn enter(new: &Path) -> Result<()> {
    for dir in ["proc", "sys", "dev"] {
        let target = new.join(dir);
        fs::create_dir_all(&target)?;
        mount_move(Path::new("/").join(dir), &target)
            .map_err(|e| named(&format!("move /{dir}"), e.into()))?;
    }
    std::env::set_current_dir(new)?;
    mount_move(".", "/").map_err(|e| named("move the root", e.into()))?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")?;
    let none = MountFlags::NOSUID | MountFlags::NODEV;
    let more = [
        (
            "/dev/pts",
            "devpts",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            c"mode=0620,ptmxmode=0666,gid=5",
        ),
        ("/dev/shm", "tmpfs", none, c"mode=1777"),
        ("/run", "tmpfs", none, c"mode=0755"),
        ("/run/secrets", "tmpfs", none | MountFlags::NOEXEC, c"mode=0700,size=16m"),
        ("/sys/fs/cgroup", "cgroup2", none | MountFlags::NOEXEC, c""),
    ];
    for (target, kind, flags, options) in more {
        let _ = fs::create_dir_all(target);
        if let Err(error) = mount(kind, target, kind, flags, options) {
            say(&format!("cannot mount {kind} at {target}: {error}"));
        }
    }
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    for (name, target) in links {
        let _ = std::os::unix::fs::symlink(target, Path::new("/dev").join(name));
    }
    // With shared propagation, containers inside the guest see later mounts.
    let _ = mount_change(
        "/",
        rustix::mount::MountPropagationFlags::SHARED | rustix::mount::MountPropagationFlags::REC,
    );
    Ok(())
}

/// Loads the modules that the image's list names, in its order.
fn load_modules() -> Result<()> {
    let list = fs::read_to_string("/etc/mvm/modules").unwrap_or_default();
    for line in
        list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let file = fs::File::open(Path::new("/").join(line))
            .map_err(|e| named(&format!("open the module {line}"), e))?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => say(&format!("cannot load the module {line}: {e}")),
        }
    }
    Ok(())
}
