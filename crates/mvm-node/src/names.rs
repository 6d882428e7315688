//! The host's name resolution, as far as guests may use it too. resolv.conf(5)

use std::net::{IpAddr, Ipv4Addr};

/// The files that name the host's DNS servers. systemd-resolved lists its own upstream servers in
/// the first.
const FILES: [&str; 2] = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];
/// The longest domain name, in characters (RFC 1035).
const LONGEST: usize = 253;
/// The number of search domains that a guest's C library uses.
const DOMAINS: usize = 6;

/// The content of a resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// The DNS servers, in the order in which they are asked.
    pub(crate) servers: Vec<IpAddr>,
    /// The domains that short names are looked up in.
    pub(crate) search: Vec<String>,
}

impl Names {
    /// Reads the host's resolv.conf.
    pub(crate) fn of_host() -> Names {
        let text = FILES.iter().find_map(|file| std::fs::read_to_string(file).ok());
        Names::read(&text.unwrap_or_default())
    }

    fn read(text: &str) -> Names {
        let mut names = Names::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // A zone after an IPv6 address means something on this host only.
                    names.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
                }
                // The last line counts.
                Some("search" | "domain") => {
                    let valid = words.filter(is_domain).take(DOMAINS);
                    names.search = valid.map(str::to_owned).collect();
                }
                _ => {}
            }
        }
        names
    }

    /// Returns whether guests can reach none of the servers, so that the agent asks the servers for
    /// them.
    pub(crate) fn needs_forwarder(&self) -> bool {
        self.reachable().is_empty() && !self.servers.is_empty()
    }

    /// Returns the DNS servers of guests in a subnet with this gateway.
    pub(crate) fn for_guests(&self, gateway: Ipv4Addr) -> Vec<Ipv4Addr> {
        match self.needs_forwarder() {
            true => vec![gateway],
            false => self.reachable(),
        }
    }

    /// Returns the servers that guests can reach: those with an IPv4 address that is not on the
    /// host's loopback.
    pub(crate) fn reachable(&self) -> Vec<Ipv4Addr> {
        let by_ipv4 = self.servers.iter().filter_map(|server| match server {
            IpAddr::V4(server) => Some(*server),
            IpAddr::V6(_) => None,
        });
        by_ipv4.filter(|server| !server.is_loopback() && !server.is_unspecified()).collect()
    }
}

fn is_domain(name: &&str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    name.len() <= LONGEST && name.chars().all(fits) && name.chars().any(|c| c != '.')
}

/// Returns all DNS servers of the host, whether guests reach them or the agent asks them for its
/// guests.
pub fn servers() -> Vec<IpAddr> {
    Names::of_host().servers
}

/// Returns the host's DNS servers that guests can reach.
pub fn resolvers() -> Vec<Ipv4Addr> {
    Names::of_host().reachable()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_domains_are_read_as_the_library_does() {
        let names = Names::read(
            "# search none\ndomain old.example\nnameserver 127.0.0.53\nnameserver 192.0.2.53\n\
             nameserver 2001:db8::53\nnameserver nonsense\n search corp.example  . $(x) lab\noptions edns0\n",
        );
        assert_eq!(names.search, ["corp.example", "lab"]);
        assert_eq!(names.servers.len(), 3);
        assert_eq!(names.reachable(), [Ipv4Addr::new(192, 0, 2, 53)]);
        let gateway = Ipv4Addr::new(10, 1, 0, 1);
        assert_eq!(names.for_guests(gateway), names.reachable());
        for text in ["nameserver 127.0.0.53", "nameserver ::1\nnameserver 2001:db8::53"] {
            assert_eq!(Names::read(text).for_guests(gateway), [gateway]);
        }
        assert_eq!(Names::read(""), Names::default());
        assert!(Names::default().for_guests(gateway).is_empty());
    }
}
