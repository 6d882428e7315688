//! Asks the kernel itself what nftables holds (netlink(7)): nft(8) would be a process for each
//! look.

use crate::{Error, Result};
use parking_lot::{Mutex, MutexGuard};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::collections::BTreeMap;
use std::io::{Error as IoError, ErrorKind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Message types of linux/netfilter/nf_tables.h.
const GET_TABLE: u8 = 1;
const GET_CHAIN: u8 = 4;
const GET_RULE: u8 = 7;
const GET_SET: u8 = 10;
const GET_ELEMENTS: u8 = 13;
const GET_GENERATION: u8 = 16;
/// Attribute numbers: in every object the first is the table's name, the second the object's own.
const TABLE: u16 = 1;
const NAME: u16 = 2;
const CHAIN_NAME: u16 = 3;
const ELEMENTS: u16 = 3;
const GENERATION_ID: u16 = 1;
const TABLE_OWNER: u16 = 7;
/// The bits of an attribute's type that do not belong to its number.
const FLAGS: u16 = 0xC000;
/// The families that have tables of mvm.
const FAMILIES: [(u8, &str); 2] =
    [(libc::NFPROTO_BRIDGE as u8, "bridge"), (libc::NFPROTO_INET as u8, "inet")];
/// Prefix of the names that the kernel gives to unnamed sets.
const NAMELESS: &str = "__";
/// Bytes of a message's header (netlink(7)); nfnetlink's own header follows it.
const HEADER: usize = 16;
const BODY: usize = HEADER + 4;
/// How often the parts are read again because somebody changes the rules meanwhile.
const TRIES: usize = 8;
/// How long no further change of rules may come until a change is reported.
const QUIET: Duration = Duration::from_millis(5);
/// The same for changes of links: a machine that starts makes many.
const QUIET_LINKS: Duration = Duration::from_millis(50);
/// How long a change is held back at most while further ones come.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the kernel may take to answer; it answers within the call.
const ANSWER: Duration = Duration::from_secs(10);
/// The longest answer, in bytes: far more than a host's rules and sets take.
const MOST_BYTES: usize = 256 << 20;

/// The parts of an owner's tables by name, each with a hash of its content. Two values are equal if
/// nothing was changed in between.
pub(crate) type Parts = BTreeMap<String, u64>;

/// A netlink socket for questions to nftables.
pub(crate) struct Nftables {
    socket: Mutex<Socket>,
}

/// Reports every change of nftables, links, addresses, routes and forwarding in this network
/// namespace.
pub struct Watch {
    rules: TokioSocket,
    links: TokioSocket,
}

impl Nftables {
    pub(crate) fn open() -> Result<Nftables> {
        let failed = |e: IoError| Error::io("open a netlink socket to nftables", &e);
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER)).map_err(|e| failed(e.into()))?;
        Ok(Nftables { socket: Mutex::new(socket) })
    }

    /// Returns the number of the last change of nftables, by any process. Takes microseconds: the
    /// kernel answers within the call.
    pub(crate) fn generation(&self) -> Result<u32> {
        let asked = || {
            let socket = self.locked();
            let answer = ask(&socket, GET_GENERATION, 0, false, &[])?;
            let answer = answer.first().ok_or(ErrorKind::InvalidData)?;
            let id = attributes(answer).find(|(kind, _)| *kind == GENERATION_ID);
            let id = id.and_then(|(_, value)| value.try_into().ok());
            Ok(u32::from_be_bytes(id.ok_or(ErrorKind::InvalidData)?))
        };
        asked().map_err(failed)
    }

    /// Returns the parts of the tables of this name in the bridge and inet families, all read at
    /// one generation, and that generation; no parts if the tables do not exist.
    pub(crate) fn parts(&self, table: &str) -> Result<(u32, Parts)> {
        for _ in 0..TRIES {
            let before = self.generation()?;
            let parts = self.parts_once(table);
            if self.generation()? == before {
                return Ok((before, parts.map_err(failed)?));
            }
        }
        Err(failed(IoError::other("the rules change all the time")))
    }

    /// Returns the tables whose names begin with `prefix`, each with its family.
    pub(crate) fn tables(&self, prefix: &str) -> Result<Vec<(&'static str, String)>> {
        let socket = self.locked();
        let mut tables = Vec::new();
        for (family, word) in FAMILIES {
            let answers = ask(&socket, GET_TABLE, family, true, &[]).map_err(failed)?;
            let names = answers.iter().filter_map(|answer| text(answer, TABLE));
            tables.extend(names.filter(|name| name.starts_with(prefix)).map(|name| (word, name)));
        }
        Ok(tables)
    }

    /// Returns the table of this name that a process holds for itself (nft(8), the flag `owner`),
    /// and the process's netlink port; `None` if no process does.
    pub(crate) fn holder(&self, table: &str) -> Result<Option<(String, u32)>> {
        let socket = self.locked();
        for (family, word) in FAMILIES {
            let answers = ask(&socket, GET_TABLE, family, false, &[(TABLE, table)]);
            for answer in absent_is_empty(answers).map_err(failed)? {
                let owner = attributes(&answer).find(|(kind, _)| *kind == TABLE_OWNER);
                let port = owner.and_then(|(_, value)| value.try_into().ok());
                if let Some(port) = port {
                    return Ok(Some((format!("{word} {table}"), u32::from_be_bytes(port))));
                }
            }
        }
        Ok(None)
    }

    fn parts_once(&self, table: &str) -> std::io::Result<Parts> {
        let socket = self.locked();
        let mut parts = Parts::new();
        for (family, word) in FAMILIES {
            let ask = |what, dump, more: &[(u16, &str)]| {
                let mut named = vec![(TABLE, table)];
                named.extend(more);
                absent_is_empty(ask(&socket, what, family, dump, &named))
            };
            let ours = |answer: &Vec<u8>| text(answer, TABLE).as_deref() == Some(table);
            let mut add = |part: &str, name: &str, sum: u64| {
                let sum_of = parts.entry(format!("{part} {word} {name}")).or_insert(0u64);
                *sum_of = sum_of.wrapping_add(sum);
            };
            for answer in ask(GET_TABLE, false, &[])? {
                add("table", table, sum(&answer));
            }
            for answer in ask(GET_CHAIN, true, &[])?.iter().filter(|answer| ours(answer)) {
                add("chain", &text(answer, CHAIN_NAME).unwrap_or_default(), sum(answer));
            }
            let rules = ask(GET_RULE, true, &[])?;
            for answer in rules.iter().filter(|answer| ours(answer)) {
                add("chain", &text(answer, NAME).unwrap_or_default(), sum(answer));
            }
            for set in ask(GET_SET, true, &[])?.iter().filter(|answer| ours(answer)) {
                let name = text(set, NAME).unwrap_or_default();
                // The kernel's name for an unnamed set is arbitrary, so the set counts as part of
                // its rule's chain.
                let (part, whole) = match name.starts_with(NAMELESS) {
                    true => ("chain", chain_with(&rules, &name).unwrap_or_default()),
                    false => ("set", name.clone()),
                };
                add(part, &whole, sum(set));
                for answer in ask(GET_ELEMENTS, true, &[(NAME, &name)])? {
                    let elements = attributes(&answer).filter(|(kind, _)| *kind == ELEMENTS);
                    // The kernel lists elements in any order, so their hashes are added up.
                    for element in elements.flat_map(|(_, list)| inner(list)) {
                        add(part, &whole, hash(element.1));
                    }
                }
            }
        }
        Ok(parts)
    }

    fn locked(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock()
    }
}

impl Watch {
    pub(crate) fn open() -> Result<Watch> {
        let links = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Netconf,
        ];
        let links = links.map(|group| group as u32);
        let rules = [libc::NFNLGRP_NFTABLES as u32];
        let listening = || {
            let rules = listen(NETLINK_NETFILTER, &rules)?;
            Ok(Watch { rules, links: listen(NETLINK_ROUTE, &links)? })
        };
        listening().map_err(|e: IoError| Error::io("listen to nftables and links", &e))
    }

    /// Waits until something has changed, and then until changes pause for a moment. Error:
    /// `network_failed` if a socket fails.
    pub async fn changed(&mut self) -> Result<()> {
        let quiet = self.heard().await?;
        let settled = async {
            while let Ok(heard) = tokio::time::timeout(quiet, self.heard()).await {
                heard?;
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, settled).await.unwrap_or(Ok(()))
    }

    /// Waits for one change; returns how long no further one may come.
    async fn heard(&mut self) -> Result<Duration> {
        let (heard, quiet) = tokio::select! {
            heard = self.rules.recv_from_full() => (heard, QUIET),
            heard = self.links.recv_from_full() => (heard, QUIET_LINKS),
        };
        match heard {
            // More was reported than the buffer holds; all that matters is that something has
            // changed.
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => Ok(quiet),
            heard => heard.map(|_| quiet).map_err(|e| Error::io("listen to the network", &e)),
        }
    }
}

fn listen(protocol: isize, groups: &[u32]) -> std::io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind_auto()?;
    groups.iter().try_for_each(|group| socket.socket_mut().add_membership(*group))?;
    Ok(socket)
}

fn failed(cause: IoError) -> Error {
    Error::io("ask the kernel for the firewall rules", &cause)
}

fn absent_is_empty(answers: std::io::Result<Vec<Vec<u8>>>) -> std::io::Result<Vec<Vec<u8>>> {
    match answers {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        answers => answers,
    }
}

/// Sends one request and returns the messages of its answer.
fn ask(
    socket: &Socket,
    what: u8,
    family: u8,
    dump: bool,
    named: &[(u16, &str)],
) -> std::io::Result<Vec<Vec<u8>>> {
    static SENT: AtomicU32 = AtomicU32::new(0);
    let sequence = SENT.fetch_add(1, Ordering::Relaxed);
    socket.send_to(&request(sequence, what, family, dump, named), &SocketAddr::new(0, 0), 0)?;
    answers(sequence, dump, Instant::now() + ANSWER, || {
        let (datagram, from) = socket.recv_from_full()?;
        Ok((datagram, from.port_number()))
    })
}

/// Reads the messages of the answer to the request with this number. What the kernel still says to
/// an earlier request, or another process says, is passed over. `receive` returns a datagram and its
/// sender's port, which is 0 for the kernel. Error: `TimedOut` if the answer has no end at the
/// deadline.
fn answers(
    sequence: u32,
    dump: bool,
    ends: Instant,
    mut receive: impl FnMut() -> std::io::Result<(Vec<u8>, u32)>,
) -> std::io::Result<Vec<Vec<u8>>> {
    let (mut answers, mut bytes) = (Vec::new(), 0);
    loop {
        if Instant::now() >= ends {
            return Err(late());
        }
        let (datagram, port) = match receive() {
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(late()),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            received => received?,
        };
        if port != 0 {
            continue;
        }
        for message in messages(&datagram).filter(|message| word(message, 8) == sequence) {
            match i32::from(u16::from_ne_bytes([message[4], message[5]])) {
                libc::NLMSG_DONE => return Ok(answers),
                libc::NLMSG_ERROR => match word(message, HEADER) as i32 {
                    0 => return Ok(answers),
                    code => return Err(IoError::from_raw_os_error(code.wrapping_neg())),
                },
                _ => answers.push(message.to_vec()),
            }
            bytes += message.len();
            if bytes > MOST_BYTES {
                return Err(IoError::other(format!("its answer has more than {MOST_BYTES} bytes")));
            }
        }
        if !dump && !answers.is_empty() {
            return Ok(answers);
        }
    }
}

fn late() -> IoError {
    let words = format!("its answer has no end within {} s", ANSWER.as_secs());
    IoError::new(ErrorKind::TimedOut, words)
}

/// Iterates over the messages of a datagram.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = (word(rest.get(..HEADER)?, 0) as usize).clamp(HEADER, rest.len());
        let (message, behind) = rest.split_at(length);
        // Messages begin at multiples of four.
        rest = behind.get(length.next_multiple_of(4) - length..).unwrap_or_default();
        Some(message)
    })
}

fn request(sequence: u32, what: u8, family: u8, dump: bool, named: &[(u16, &str)]) -> Vec<u8> {
    let flags = libc::NLM_F_REQUEST | if dump { libc::NLM_F_DUMP } else { 0 };
    let mut message = vec![0; 4];
    message.extend([what, libc::NFNL_SUBSYS_NFTABLES as u8]);
    message.extend((flags as u16).to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend([0; 4]);
    message.extend([family, 0, 0, 0]);
    for (kind, text) in named {
        let length = text.len() + 5;
        message.extend((length as u16).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(text.as_bytes());
        message.push(0);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    found.map_or(0, u32::from_ne_bytes)
}

/// Iterates over an object's attributes with their numbers.
fn attributes(message: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    inner(message.get(BODY..).unwrap_or_default())
}

/// Iterates over the attributes in a list of attributes.
fn inner(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*rest.first()?, *rest.get(1)?]));
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]) & !FLAGS;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn text(message: &[u8], kind: u16) -> Option<String> {
    let (_, value) = attributes(message).find(|(found, _)| *found == kind)?;
    Some(String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned())
}

/// Hashes everything that an object is; the headers before it only say when and to whom it was
/// sent.
fn sum(message: &[u8]) -> u64 {
    hash(message.get(BODY..).unwrap_or_default())
}

/// FNV-1a, whose result is the same in every build: another version of the agent reads what this
/// one has kept.
fn hash(bytes: &[u8]) -> u64 {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Returns the chain of the rule that looks into this set.
fn chain_with(rules: &[Vec<u8>], set: &str) -> Option<String> {
    let named = [set.as_bytes(), &[0]].concat();
    let has = |rule: &&Vec<u8>| rule.windows(named.len()).any(|part| part == named);
    text(rules.iter().find(has)?, NAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message with this number and type, and a body of four bytes.
    fn message(sequence: u32, kind: i32, body: u32) -> Vec<u8> {
        let kind = (kind as u32).to_ne_bytes();
        [20u32.to_ne_bytes(), kind, sequence.to_ne_bytes(), [0; 4], body.to_ne_bytes()].concat()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    #[test]
    fn only_the_kernels_answer_to_this_question_is_read() {
        const KIND: i32 = 0xa01;
        let mut arrives = [
            // The rest of an earlier answer, its end, and its error.
            (message(6, KIND, 1), 0),
            (message(6, libc::NLMSG_DONE, 0), 0),
            (message(6, libc::NLMSG_ERROR, 1), 0),
            // Another process may send to the socket, and choose any number.
            (message(7, KIND, 2), 4711),
            (message(7, libc::NLMSG_DONE, 0), 4711),
            ([message(7, KIND, 3), message(6, KIND, 4), message(7, KIND, 5)].concat(), 0),
            (message(7, libc::NLMSG_DONE, 0), 0),
        ]
        .into_iter();
        let read = answers(7, true, soon(), || Ok(arrives.next().expect("it has ended")));
        assert_eq!(read.expect("an answer"), [message(7, KIND, 3), message(7, KIND, 5)]);
        let mut arrives = [(message(6, KIND, 1), 0), (message(7, KIND, 2), 0)].into_iter();
        let read = answers(7, false, soon(), || Ok(arrives.next().expect("it has ended")));
        assert_eq!(read.expect("an answer"), [message(7, KIND, 2)]);
    }

    #[test]
    fn an_answer_without_end_is_given_up() {
        let mut many = message(7, 0xa01, 0);
        many.resize(1 << 20, 0);
        many[..4].copy_from_slice(&(1u32 << 20).to_ne_bytes());
        let error = answers(7, true, soon(), || Ok((many.clone(), 0))).expect_err("too long");
        assert!(error.to_string().contains("bytes"), "{error}");
        let ends = Instant::now() + Duration::from_millis(20);
        for port in [0, 4711] {
            let foreign = message(6, libc::NLMSG_DONE, 0);
            let error = answers(7, true, ends, || Ok((foreign.clone(), port))).expect_err("late");
            assert_eq!(error.kind(), ErrorKind::TimedOut);
        }
        let silent = || Err(ErrorKind::WouldBlock.into());
        assert_eq!(answers(7, true, soon(), silent).expect_err("late").kind(), ErrorKind::TimedOut);
    }

    proptest! {
        /// The kernel is trusted, but a wrong length must not cause a panic all the same.
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let read = attributes(&bytes).take(1000).count();
            prop_assert!(read <= bytes.len());
            prop_assert!(inner(&bytes).all(|(_, value)| value.len() <= bytes.len()));
            let _ = (text(&bytes, TABLE), sum(&bytes));
        }

        #[test]
        fn what_is_asked_is_read_back(name in "[a-z_0-9]{0,20}", more in "[a-z]{0,9}") {
            let message = request(7, GET_ELEMENTS, 1, true, &[(TABLE, &name), (NAME, &more)]);
            prop_assert_eq!((message.len() as u32, 7), (word(&message, 0), word(&message, 8)));
            prop_assert_eq!(text(&message, TABLE), Some(name));
            prop_assert_eq!(text(&message, NAME), Some(more));
        }
    }
}
