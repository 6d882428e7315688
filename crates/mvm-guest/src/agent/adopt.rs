//! Makes a clone a machine of its own: clock, name, entropy, address, keys.

use super::common::guest_error;
use super::ssh;
use crate::protocol::{Adopt, GuestNetwork};
use crate::{Error, RUN_ETC, Result};
use mvm_code::Code;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

/// The kernel's id of this boot, as programs read it.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The file mounted over it.
const OWN_BOOT_ID: &str = "/run/mvm/boot-id";

/// Brings the loopback interface up, to which servers in the guest bind; nobody else does so.
pub fn loopback() -> std::io::Result<()> {
    sys::Interfaces::open()?.up("lo")
}

/// Takes on the parts of the identity that are given. Idempotent.
pub async fn adopt(identity: Adopt, server: &ssh::Server) -> Result<()> {
    if let Some(nanoseconds) = identity.wall_clock_ns {
        set_clock(nanoseconds)?;
    }
    if let Some(entropy) = &identity.entropy {
        sys::add_entropy(entropy).map_err(|e| guest_error("add entropy", &e))?;
    }
    if let Some(name) = &identity.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|e| guest_error("set the host name", &e.into()))?;
        write("/etc/hostname", &format!("{name}\n"))?;
        write("/etc/hosts", &format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n"))?;
    }
    if let Some(id) = &identity.machine_id {
        let (path, text) = ("/etc/machine-id", format!("{id}\n"));
        if !fs::read_to_string(path).is_ok_and(|now| now == text) {
            set_boot_id()?;
            write(path, &text)?;
        }
    }
    if let Some(network) = &identity.network {
        set_network(network)?;
    }
    if let Some(ssh) = &identity.ssh {
        server.start(ssh).await?;
    }
    Ok(())
}

/// Mounts a boot id of the machine's own over the kernel's, which every clone shares with its
/// template. This comes before the machine id is written, so that an interrupted call does it
/// again.
fn set_boot_id() -> Result<()> {
    let failed = |e| guest_error("set the boot id", &e);
    let set = || {
        // The kernel's generator has this machine's entropy by now.
        let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        if let Some(dir) = Path::new(OWN_BOOT_ID).parent() {
            fs::create_dir_all(dir)?;
        }
        // The file is written in place: in a template it may be mounted over the kernel's already.
        fs::write(OWN_BOOT_ID, &id)?;
        if fs::read_to_string(BOOT_ID)? != id {
            rustix::mount::mount_bind(OWN_BOOT_ID, BOOT_ID)?;
        }
        Ok(())
    };
    set().map_err(failed)
}

/// Sets the wall clock unless it is right to the millisecond: a step disturbs programs.
#[allow(clippy::disallowed_methods)] // The wall clock is what it sets.
fn set_clock(nanoseconds: u64) -> Result<()> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = since.map_or(0, |d| d.as_nanos() as u64);
    if now.abs_diff(nanoseconds) < 1_000_000 {
        return Ok(());
    }
    let time = rustix::time::Timespec {
        tv_sec: (nanoseconds / 1_000_000_000) as i64,
        tv_nsec: (nanoseconds % 1_000_000_000) as _,
    };
    rustix::time::clock_settime(rustix::time::ClockId::Realtime, time)
        .map_err(|e| guest_error("set the clock", &e.into()))
}

fn write(path: &str, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|now| now == text) {
        return Ok(());
    }
    // A link into the image's read-only store is replaced, not written through.
    if !fs::read_link(path).is_ok_and(|target| target.starts_with(RUN_ETC)) {
        let _ = fs::remove_file(path);
    }
    fs::write(path, text).map_err(|e| guest_error(&format!("write {path}"), &e))
}

fn set_network(network: &GuestNetwork) -> Result<()> {
    let invalid = || Error::Guest {
        code: Code::InvalidNetwork,
        message: format!(
            "{} via {} is not a valid IPv4 configuration",
            network.address, network.gateway
        ),
    };
    let (address, length) = network.address.split_once('/').ok_or_else(invalid)?;
    let address: Ipv4Addr = address.parse().map_err(|_| invalid())?;
    let length: u32 = length.parse().ok().filter(|l| *l <= 32).ok_or_else(invalid)?;
    let gateway: Ipv4Addr = network.gateway.parse().map_err(|_| invalid())?;
    let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - length).unwrap_or(0));
    let card = card().ok_or_else(|| Error::Guest {
        code: Code::NoNetworkCard,
        message: "the guest has no network card".to_owned(),
    })?;
    let failed = |e: std::io::Error| guest_error(&format!("configure {card}"), &e);
    sys::Interfaces::open()
        .and_then(|interfaces| {
            interfaces.up("lo")?;
            if let Some(mac) = network.mac.as_deref().and_then(parse_mac) {
                interfaces.set_mac(&card, mac)?;
            }
            if let Some(mtu) = network.mtu {
                fs::write(format!("/sys/class/net/{card}/mtu"), mtu.to_string())?;
            }
            interfaces.set_address(&card, address, mask)?;
            interfaces.up(&card)?;
            interfaces.set_default_route(gateway)
        })
        .map_err(failed)?;
    let mut lines: String =
        network.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !network.search.is_empty() {
        lines.push_str(&format!("search {}\n", network.search.join(" ")));
    }
    write("/etc/resolv.conf", &lines)
}

/// Returns the first network card by name, other than the loopback; `None` if there is none.
fn card() -> Option<String> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/net")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| fs::exists(format!("/sys/class/net/{name}/device")).unwrap_or(false))
        .collect();
    names.sort();
    names.into_iter().next()
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> =
        text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

/// The ioctls of netdevice(7) and random(4).
mod sys {
    use rustix::fd::{AsRawFd, OwnedFd};
    use std::io::{Error, Result};
    use std::net::Ipv4Addr;

    /// `RNDADDENTROPY`: `_IOW('R', 0x03, int[2])`.
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    /// `RNDRESEEDCRNG`: `_IO('R', 0x07)`.
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

    #[repr(C)]
    struct Pool {
        bits: libc::c_int,
        size: libc::c_int,
        bytes: [u8; 64],
    }

    /// Feeds random bytes to the kernel's generator and makes it use them at once.
    pub fn add_entropy(bytes: &[u8]) -> Result<()> {
        let device = std::fs::OpenOptions::new().write(true).open("/dev/urandom")?;
        for piece in bytes.chunks(64) {
            let mut pool = Pool {
                bits: piece.len() as libc::c_int * 8,
                size: piece.len() as libc::c_int,
                bytes: [0; 64],
            };
            pool.bytes[..piece.len()].copy_from_slice(piece);
            // SAFETY: the argument is a live rand_pool_info whose size says how much it holds.
            check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &pool) })?;
        }
        // SAFETY: this request takes no argument.
        check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) })
    }

    fn check(result: libc::c_int) -> Result<()> {
        if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
    }

    /// A socket for interface requests.
    pub struct Interfaces(OwnedFd);

    impl Interfaces {
        /// Opens the socket.
        pub fn open() -> Result<Self> {
            use rustix::net::{AddressFamily, SocketType, socket};
            Ok(Interfaces(socket(AddressFamily::INET, SocketType::DGRAM, None)?))
        }

        /// Brings an interface up.
        pub fn up(&self, name: &str) -> Result<()> {
            let mut request = named(name)?;
            self.ask(libc::SIOCGIFFLAGS, &mut request)?;
            // SAFETY: the kernel has just filled in the flags.
            let flags = unsafe { request.ifr_ifru.ifru_flags };
            request.ifr_ifru.ifru_flags = flags | (libc::IFF_UP as libc::c_short);
            self.ask(libc::SIOCSIFFLAGS, &mut request)
        }

        /// Gives an interface this MAC address, unless it has it already.
        pub fn set_mac(&self, name: &str, mac: [u8; 6]) -> Result<()> {
            let mut request = named(name)?;
            self.ask(libc::SIOCGIFHWADDR, &mut request)?;
            // SAFETY: the kernel has just filled in the hardware address.
            let mut address = unsafe { request.ifr_ifru.ifru_hwaddr };
            let wanted = mac.map(|byte| byte as libc::c_char);
            if address.sa_data[..6] == wanted {
                return Ok(());
            }
            address.sa_data[..6].copy_from_slice(&wanted);
            request.ifr_ifru.ifru_hwaddr = address;
            self.ask(libc::SIOCSIFHWADDR, &mut request)
        }

        /// Gives an interface its address and netmask.
        pub fn set_address(&self, name: &str, address: Ipv4Addr, mask: Ipv4Addr) -> Result<()> {
            let mut request = named(name)?;
            request.ifr_ifru.ifru_addr = socket_address(address);
            self.ask(libc::SIOCSIFADDR, &mut request)?;
            request.ifr_ifru.ifru_netmask = socket_address(mask);
            self.ask(libc::SIOCSIFNETMASK, &mut request)
        }

        /// Sets the default route; an existing one is no error.
        pub fn set_default_route(&self, gateway: Ipv4Addr) -> Result<()> {
            // SAFETY: a route of zeros is valid: no flags, no addresses.
            let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
            route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
            route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
            route.rt_gateway = socket_address(gateway);
            route.rt_flags = (libc::RTF_UP | libc::RTF_GATEWAY) as libc::c_ushort;
            // SAFETY: the argument is a live rtentry.
            let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCADDRT, &route) };
            match check(result) {
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
                other => other,
            }
        }

        fn ask(&self, request: libc::c_ulong, argument: &mut libc::ifreq) -> Result<()> {
            // SAFETY: every request used here takes an ifreq, which is live.
            check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument) })
        }
    }

    fn named(name: &str) -> Result<libc::ifreq> {
        // SAFETY: an ifreq of zeros is valid: an empty name and no address.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.len() >= request.ifr_name.len() {
            return Err(Error::from_raw_os_error(libc::ENAMETOOLONG));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        Ok(request)
    }

    fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
        let mut data = [0 as libc::c_char; 14];
        for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
            *to = from as libc::c_char;
        }
        libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
    }
}
