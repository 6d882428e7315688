//! Values of arguments with a syntax of their own. They are parsed before the command starts, so
//! that a fault in one is a usage error and no agent is started for it.

use crate::time::wall;
use mvm_model::{Code, Fault, InstanceRef, Name, PoolRef, Timestamp};
use std::str::FromStr;
use std::time::Duration;

/// The tenant or pool that a list is limited to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListScope {
    /// `tenant`
    Tenant(Name),
    /// `tenant/pool`
    Pool(PoolRef),
}

impl FromStr for ListScope {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        match text.contains('/') {
            true => text.parse().map(ListScope::Pool),
            false => text.parse().map(ListScope::Tenant),
        }
    }
}

/// A copy's source or target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyEndpoint {
    /// A path on this machine.
    Local(String),
    /// `tenant/pool/id:/path`
    Guest(InstanceRef, String),
}

impl FromStr for CopyEndpoint {
    type Err = Fault;

    /// `a/b/i-…:path` is a path in an instance. Any other text, and what begins with `.` or `/`, is
    /// a local path.
    fn from_str(text: &str) -> Result<Self, Fault> {
        let local = || Ok(CopyEndpoint::Local(text.to_owned()));
        let Some((reference, path)) = text.split_once(':') else { return local() };
        let parts: Vec<&str> = reference.split('/').collect();
        match parts[..] {
            [tenant, _, id] if id.starts_with("i-") && !matches!(tenant, "" | "." | "..") => {
                Ok(CopyEndpoint::Guest(reference.parse()?, path.to_owned()))
            }
            _ => local(),
        }
    }
}

/// `HOST:PORT`, or a host alone: the port is 4433 then. `unix:/PATH` is a socket of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(String);

/// The API's default port.
const PORT: u16 = 4433;

impl FromStr for Address {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        if text.strip_prefix("unix:").is_some_and(|path| path.starts_with('/')) {
            return Ok(Address(text.to_owned()));
        }
        if let Ok(address) = text.parse::<std::net::IpAddr>() {
            return Ok(Address(std::net::SocketAddr::new(address, PORT).to_string()));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse::<u16>().unwrap_or(0)),
            None => (text, PORT),
        };
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if port == 0 || host.is_empty() || !bracketed && !host.chars().all(fits) {
            let detail = format!("{text:?} is not a valid address");
            return Err(Fault::new(Code::InvalidValue, detail)
                .hint("write it as HOST:PORT, such as 10.0.1.5:4433"));
        }
        Ok(Address(format!("{host}:{port}")))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Coordinators of one fleet, any of which will do: `HOST:PORT,HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coordinators(Vec<Address>);

impl Coordinators {
    /// Returns the coordinators' addresses: at least one, without duplicates.
    pub fn addresses(&self) -> &[Address] {
        &self.0
    }
}

impl FromStr for Coordinators {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let mut all = Vec::new();
        for member in text.split(',') {
            if member.is_empty() && !text.is_empty() {
                let detail = format!("the list {text:?} has an empty member");
                return Err(Fault::new(Code::InvalidValue, detail)
                    .hint("write it as HOST:PORT,HOST:PORT, such as 10.0.1.1:4433,10.0.1.2:4433"));
            }
            let address: Address = member.parse()?;
            if !all.contains(&address) {
                all.push(address);
            }
        }
        Ok(Coordinators(all))
    }
}

impl std::fmt::Display for Coordinators {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&all.join(","))
    }
}

/// How long something is good: seconds, or a number with `s`, `m`, `h`, `d` or `y`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime(u64);

impl Lifetime {
    /// Returns the length of time.
    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl FromStr for Lifetime {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "" | "s" => Some(1),
            "m" => Some(60),
            "h" => Some(3600),
            "d" => Some(24 * 3600),
            "y" => Some(365 * 24 * 3600),
            _ => None,
        };
        let number = digits.parse::<u64>().ok().filter(|number| *number < 1 << 32);
        let seconds = number.zip(unit).map(|(number, unit)| number * unit);
        seconds.filter(|seconds| *seconds > 0).map(Lifetime).ok_or_else(|| {
            Fault::new(Code::InvalidValue, format!("{text:?} is not a valid duration"))
                .hint("write it as 90s, 15m, 1h, 30d or 1y")
        })
    }
}

/// A moment that is past: a date, a time, or how long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(Timestamp);

impl Moment {
    /// Returns the moment.
    pub fn time(&self) -> Timestamp {
        self.0
    }
}

impl FromStr for Moment {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let at = if let Ok(age) = text.parse::<Lifetime>() {
            wall().as_millis().checked_sub(age.duration().as_millis() as u64)
        } else {
            let midnight = || format!("{text}T00:00:00Z").parse();
            let time: Option<jiff::Timestamp> = text.parse().or_else(|_| midnight()).ok();
            time.and_then(|time| u64::try_from(time.as_millisecond()).ok())
        };
        at.map(|at| Moment(Timestamp::from_millis(at))).ok_or_else(|| {
            Fault::new(Code::InvalidValue, format!("{text:?} is not a valid date or age"))
                .hint("write it as 2026-01-31 (UTC), 2026-01-31T12:00:00Z, 90d or 1y")
        })
    }
}

/// How long somebody waits: a [`Lifetime`], or `0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait(Duration);

impl Wait {
    /// Returns the duration.
    pub fn duration(&self) -> Duration {
        self.0
    }
}

impl FromStr for Wait {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        match text {
            "0" | "0s" => Ok(Wait(Duration::ZERO)),
            text => text.parse().map(|time: Lifetime| Wait(time.duration())),
        }
    }
}

/// `NAME=VALUE`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The text before the first `=`, never empty.
    pub name: String,
    /// The text after the first `=`.
    pub value: String,
}

impl FromStr for Pair {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                Ok(Pair { name: name.to_owned(), value: value.to_owned() })
            }
            Some(_) => Err(Fault::new(Code::InvalidValue, "nothing stands before the '='")),
            None => Err(Fault::new(Code::InvalidValue, "there is no '=' in it")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_in_an_instance_only_if_it_says_so() {
        let guest =
            |text: &str| matches!(text.parse::<CopyEndpoint>(), Ok(CopyEndpoint::Guest(..)));
        let local = |text: &str| matches!(text.parse::<CopyEndpoint>(), Ok(CopyEndpoint::Local(_)));
        assert!(guest("ci/runners/i-0123abcd:/work"));
        assert!(guest("ci/runners/i-0123abcd:"));
        for text in ["src", "./src", "a:b", "/a/i-0123abcd:/x", "./a/i-0123abcd:x", "../a/i-b:x"] {
            assert!(local(text), "{text}");
        }
        for text in ["Ci/runners/i-0123abcd:/work", "ci/runners/i-xyz:/work"] {
            assert!(text.parse::<CopyEndpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_has_a_port() {
        let address = |text: &str| text.parse::<Address>().map(|address| address.to_string());
        for (text, read) in [
            ("10.0.1.5:4433", "10.0.1.5:4433"),
            ("10.0.1.5", "10.0.1.5:4433"),
            ("node-1.example:99", "node-1.example:99"),
            ("node-1", "node-1:4433"),
            ("::1", "[::1]:4433"),
            ("[::1]:99", "[::1]:99"),
        ] {
            assert_eq!(address(text).as_deref(), Ok(read), "{text}");
        }
        for text in ["", ":4433", "a:", "a:0", "a:65536", "a b:1", "a/b", "http://a:1"] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_list_of_coordinators_has_no_gap() {
        let list = |text: &str| text.parse::<Coordinators>().map(|list| list.to_string());
        for (text, read) in [
            ("10.0.1.1:4433", "10.0.1.1:4433"),
            ("10.0.1.1:4433,c2:99", "10.0.1.1:4433,c2:99"),
            ("c1,::1,unix:/run/c.sock", "c1:4433,[::1]:4433,unix:/run/c.sock"),
            ("c1,c2,c1:4433", "c1:4433,c2:4433"),
        ] {
            assert_eq!(list(text).as_deref(), Ok(read), "{text}");
        }
        for text in ["", ",", "c1,", ",c1", "c1,,c2", "c1,c2:", "c1:0,c2", "c1, c2", "c1;c2"] {
            let fault = list(text).expect_err(text);
            assert_eq!(fault.code, Code::InvalidValue, "{text}");
            assert!(!fault.hint.is_empty(), "{text}");
        }
    }

    #[test]
    fn a_lifetime_has_a_unit() {
        let millis = |text: &str| text.parse::<Lifetime>().map(|time| time.duration().as_millis());
        for (text, read) in [
            ("90", 90_000),
            ("90s", 90_000),
            ("15m", 900_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(millis(text), Ok(read), "{text}");
        }
        for text in ["", "0", "h", "1w", "-1s", "1.5h", "99999999999999999999y", "1 h"] {
            assert!(millis(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nobody_has_to_wait() {
        let wait = |text: &str| text.parse::<Wait>().map(|wait| wait.duration().as_secs());
        assert_eq!(
            [wait("0"), wait("0s"), wait("90"), wait("2m")],
            [Ok(0), Ok(0), Ok(90), Ok(120)]
        );
        assert!(wait("").is_err() && wait("-1").is_err() && wait("1w").is_err());
    }

    #[test]
    fn a_pair_has_a_name() {
        let pair = |text: &str| text.parse::<Pair>().map(|p| (p.name, p.value));
        assert_eq!(pair("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        assert_eq!(pair("A=").unwrap(), ("A".into(), String::new()));
        assert!(pair("=b").is_err() && pair("A").is_err() && pair("").is_err());
    }
}
