//! Makes persistent taps (Documentation/networking/tuntap.rst of Linux).

use std::fs::OpenOptions;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const TUNSETOWNER: libc::c_ulong = 0x4004_54cc;

/// Makes the tap `name`, or opens the existing one, and lets the user `owner` use it. The tap
/// outlives this process and every hypervisor.
pub fn persist(name: &str, owner: Option<u32>) -> Result<()> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: an ifreq of zeros is valid: an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF takes an ifreq, which is live.
    check(unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, &mut request) })?;
    if let Some(owner) = owner {
        // SAFETY: TUNSETOWNER takes a user id by value.
        check(unsafe { libc::ioctl(device.as_raw_fd(), TUNSETOWNER, libc::c_ulong::from(owner)) })?;
    }
    // SAFETY: TUNSETPERSIST takes a number by value.
    check(unsafe { libc::ioctl(device.as_raw_fd(), TUNSETPERSIST, 1 as libc::c_ulong) })
}

fn check(result: libc::c_int) -> Result<()> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}
