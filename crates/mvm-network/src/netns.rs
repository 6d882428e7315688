//! Network namespaces as ip-netns(8) keeps them.

use crate::{Error, Result};
use std::fs::File;
use std::os::fd::AsFd;

const DIR: &str = "/run/netns";

/// Moves this process into the network namespace `name`. It must be called before any other thread
/// exists: setns(2) moves only the calling one. Errors: `netns_not_found`, `not_permitted`.
pub fn enter_netns(name: &str) -> Result<()> {
    let valid = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    if !valid {
        return Err(Error::NetnsName { name: name.to_owned() });
    }
    let Ok(file) = File::open(format!("{DIR}/{name}")) else {
        let mut known: Vec<String> = std::fs::read_dir(DIR)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        known.sort();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(Error::NetnsNotFound { name: name.to_owned(), known });
    };
    let kind = rustix::thread::ThreadNameSpaceType::NETWORK;
    rustix::thread::move_into_thread_name_spaces(file.as_fd(), kind)
        .or_else(|_| {
            rustix::thread::move_into_link_name_space(
                file.as_fd(),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
        })
        .map_err(|e| Error::io(format!("enter the network namespace {name}"), &e.into()))
}
