//! How the host resolves names, as far as guests may do the same. resolv.conf(5)

use std::net::{IpAddr, Ipv4Addr};

/// Where the host says it; systemd's own resolver says in the first whom it asks itself.
const FILES: [&str; 2] = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];
/// The longest name (RFC 1035), and how many domains a guest's library looks at.
const LONGEST: usize = 253;
const DOMAINS: usize = 6;

/// What a resolv.conf says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// DNS servers, in the order in which they are asked.
    pub(crate) servers: Vec<IpAddr>,
    /// Domains that short names are looked up in.
    pub(crate) search: Vec<String>,
}

impl Names {
    /// The host's.
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
                    // A link's zone behind an IPv6 address is no matter of others.
                    names.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
                }
                // The last one counts.
                Some("search" | "domain") => {
                    let valid = words.filter(is_domain).take(DOMAINS);
                    names.search = valid.map(str::to_owned).collect();
                }
                _ => {}
            }
        }
        names
    }

    /// Whether guests reach none of the servers, and the agent asks them in their place.
    pub(crate) fn needs_forwarder(&self) -> bool {
        self.reachable().is_empty() && !self.servers.is_empty()
    }

    /// Whom guests are told to ask, in a subnet with this gateway.
    pub(crate) fn for_guests(&self, gateway: Ipv4Addr) -> Vec<Ipv4Addr> {
        match self.needs_forwarder() {
            true => vec![gateway],
            false => self.reachable(),
        }
    }

    /// The servers that guests can reach: those that are not on the host's loopback, and have no IPv6
    /// address.
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

/// The host's DNS servers, whether guests reach them or the agent asks them for its guests.
pub fn servers() -> Vec<IpAddr> {
    Names::of_host().servers
}

/// The host's DNS servers that guests can reach.
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
