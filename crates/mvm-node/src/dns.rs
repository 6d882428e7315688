//! A DNS forwarder on each tenant's gateway, for hosts whose own servers guests cannot reach:
//! servers on the loopback, as systemd's resolver is, or with an IPv6 address.
//!
//! The forwarder reads only the header of a message (RFC 1035). The host's resolver interprets the
//! question, and the guest the answer. The message id is drawn anew, so that no guest can predict
//! the host's. Everything is limited: the number of open questions, the size of a question, and the
//! wait for an answer.

use crate::Result;
use crate::error::io;
use crate::locks::locked;
use crate::names::Names;
use crate::records::{RecordSet, Records};
use ipnet::Ipv4Net;
use std::collections::HashMap;
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex as Lock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

/// The port of DNS.
pub(crate) const PORT: u16 = 53;
/// How often the tenants and the host's servers are looked up.
const LOOK: Duration = Duration::from_secs(1);
/// The largest message over UDP, in bytes.
const MOST: usize = 4096;
/// The length of a message's header, in bytes.
const HEADER: usize = 12;
const ANSWERS: u8 = 0x80;
/// The most open questions of one tenant, over UDP and over TCP.
const QUESTIONS: usize = 64;
const CONNECTIONS: usize = 16;
/// How long one server may take to answer, and how long a connection may be open.
const ANSWER: Duration = Duration::from_secs(3);
const OPEN: Duration = Duration::from_secs(30);

/// The host's servers.
type Servers = Arc<Lock<Vec<SocketAddr>>>;

/// Serves until the task is aborted.
pub(crate) async fn run(records: Arc<Records>) {
    let servers = Servers::default();
    let mut tasks = JoinSet::new();
    let mut serving: HashMap<(Ipv4Addr, Ipv4Net), Vec<AbortHandle>> = HashMap::new();
    let mut told = false;
    loop {
        let names = Names::of_host();
        let wanted: Vec<(Ipv4Addr, Ipv4Net)> = match names.needs_forwarder() {
            false => Vec::new(),
            true => {
                let tenants = |records: &RecordSet| {
                    let all = records.tenants.values();
                    all.map(|t| (t.network.gateway(), t.network.ipv4_subnet)).collect()
                };
                records.read(tenants)
            }
        };
        *locked(&servers) = names.servers.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect();
        serving.retain(|at, handles| {
            let alive = wanted.contains(at) && handles.iter().all(|handle| !handle.is_finished());
            if !alive {
                handles.iter().for_each(AbortHandle::abort);
            }
            alive
        });
        while tasks.try_join_next().is_some() {}
        let mut failed = false;
        for (gateway, subnet) in wanted {
            if serving.contains_key(&(gateway, subnet)) {
                continue;
            }
            match open(SocketAddr::new(gateway.into(), PORT)).await {
                Ok((udp, tcp)) => {
                    let by_udp = tasks.spawn(answer_udp(udp, subnet, servers.clone()));
                    let by_tcp = tasks.spawn(answer_tcp(tcp, subnet, servers.clone()));
                    serving.insert((gateway, subnet), vec![by_udp, by_tcp]);
                }
                Err(error) => {
                    failed = true;
                    if !told {
                        tracing::warn!("guests of {subnet} resolve no names: {error}");
                    }
                }
            }
        }
        told = failed;
        tokio::time::sleep(LOOK).await;
    }
}

async fn open(at: SocketAddr) -> Result<(UdpSocket, TcpListener)> {
    let failed = |e| io(format!("listen on {at}"), e);
    let udp = UdpSocket::bind(at).await.map_err(failed)?;
    Ok((udp, TcpListener::bind(at).await.map_err(failed)?))
}

/// Returns whether the message is a question from a guest in this subnet.
fn is_asked_by(message: &[u8], from: IpAddr, subnet: Ipv4Net) -> bool {
    let near = matches!(from, IpAddr::V4(from) if subnet.contains(&from));
    near && (HEADER..=MOST).contains(&message.len()) && message[2] & ANSWERS == 0
}

async fn answer_udp(socket: UdpSocket, subnet: Ipv4Net, servers: Servers) {
    let (socket, free) = (Arc::new(socket), Arc::new(Semaphore::new(QUESTIONS)));
    // One more byte than the largest message detects larger ones.
    let mut buffer = vec![0; MOST + 1];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // The error of an earlier answer is reported here, too.
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => continue,
            Err(_) => return,
        };
        let question = &buffer[..length];
        if !is_asked_by(question, from.ip(), subnet) {
            continue;
        }
        // A guest whose question is dropped repeats it by itself.
        let Ok(place) = free.clone().try_acquire_owned() else { continue };
        let (question, socket) = (question.to_vec(), socket.clone());
        let servers = locked(&servers).clone();
        tokio::spawn(async move {
            if let Some(answer) = ask(&servers, &question, Transport::Udp).await {
                let _ = socket.send_to(&answer, from).await;
            }
            drop(place);
        });
    }
}

async fn answer_tcp(listener: TcpListener, subnet: Ipv4Net, servers: Servers) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok((stream, from)) = listener.accept().await else { return };
        let Ok(place) = free.clone().try_acquire_owned() else { continue };
        let servers = servers.clone();
        tokio::spawn(async move {
            let _ = timeout(OPEN, answer_questions(stream, from.ip(), subnet, servers)).await;
            drop(place);
        });
    }
}

/// Answers a connection's questions one after the other, until the guest has no more.
async fn answer_questions(
    mut stream: TcpStream,
    from: IpAddr,
    subnet: Ipv4Net,
    servers: Servers,
) -> std::io::Result<()> {
    loop {
        let question = read(&mut stream, MOST).await?;
        if !is_asked_by(&question, from, subnet) {
            return Ok(());
        }
        let servers = locked(&servers).clone();
        let answer = ask(&servers, &question, Transport::Tcp).await.ok_or(ErrorKind::TimedOut)?;
        write(&mut stream, &answer).await?;
    }
}

/// The transport to the server: the same that the guest used.
#[derive(Clone, Copy, Debug)]
enum Transport {
    Udp,
    Tcp,
}

/// Returns the answer of the first server that gives one.
async fn ask(servers: &[SocketAddr], question: &[u8], transport: Transport) -> Option<Vec<u8>> {
    for server in servers {
        let answer = match transport {
            Transport::Udp => timeout(ANSWER, ask_udp(*server, question)).await,
            Transport::Tcp => timeout(ANSWER, ask_tcp(*server, question)).await,
        };
        if let Ok(Ok(answer)) = answer {
            return Some(answer);
        }
    }
    None
}

/// Returns the question with a new message id, and that id.
fn renumbered(question: &[u8]) -> std::io::Result<(Vec<u8>, [u8; 2])> {
    let number = crate::random::random_bytes::<2>().map_err(|e| Error::other(e.to_string()))?;
    let mut ours = question.to_vec();
    ours[..2].copy_from_slice(&number);
    Ok((ours, number))
}

/// Returns the answer with the guest's message id; `None` where it does not answer this question.
fn returned(mut answer: Vec<u8>, number: [u8; 2], question: &[u8]) -> Option<Vec<u8>> {
    if answer.len() < HEADER || answer[..2] != number || answer[2] & ANSWERS == 0 {
        return None;
    }
    answer[..2].copy_from_slice(&question[..2]);
    Some(answer)
}

async fn ask_udp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let (ours, number) = renumbered(question)?;
    socket.send(&ours).await?;
    let mut buffer = vec![0; MOST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = returned(buffer[..length].to_vec(), number, question) {
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let (ours, number) = renumbered(question)?;
    write(&mut stream, &ours).await?;
    let answer = read(&mut stream, usize::from(u16::MAX)).await?;
    returned(answer, number, question).ok_or_else(|| ErrorKind::InvalidData.into())
}

async fn read(stream: &mut TcpStream, most: usize) -> std::io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > most {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(Error::other)?;
    let whole = [&length.to_be_bytes(), message].concat();
    stream.write_all(&whole).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts a server that answers each question with the question itself, over UDP and TCP. Its
    /// first answer over UDP has a wrong message id.
    async fn server() -> SocketAddr {
        let udp = UdpSocket::bind("127.0.0.1:0").await.expect("udp");
        let at = udp.local_addr().expect("address");
        let tcp = TcpListener::bind(at).await.expect("tcp");
        let answer = |mut message: Vec<u8>| {
            message[2] |= ANSWERS;
            message
        };
        tokio::spawn(async move {
            let mut buffer = [0; MOST];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                let right = answer(buffer[..length].to_vec());
                let mut wrong = right.clone();
                wrong[0] ^= 1;
                udp.send_to(&wrong, from).await.expect("sent");
                udp.send_to(&right, from).await.expect("sent");
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let question = read(&mut stream, MOST).await.expect("question");
                write(&mut stream, &answer(question)).await.expect("sent");
            }
        });
        at
    }

    fn question(number: u8) -> Vec<u8> {
        [&[number, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x01a\0\0\x01\0\x01"].concat()
    }

    #[tokio::test]
    async fn questions_of_guests_are_passed_on_and_no_others() {
        // No server listens at the first address, so the second is asked.
        let servers = vec!["127.0.0.1:1".parse().expect("address"), server().await];
        let servers: Servers = Arc::new(Lock::new(servers));
        let udp = UdpSocket::bind("127.0.0.1:0").await.expect("udp");
        let at = udp.local_addr().expect("address");
        let tcp = TcpListener::bind(at).await.expect("tcp");
        let subnet: Ipv4Net = "127.0.0.0/30".parse().expect("subnet");
        tokio::spawn(answer_udp(udp, subnet, servers.clone()));
        tokio::spawn(answer_tcp(tcp, subnet, servers));

        let near = UdpSocket::bind("127.0.0.2:0").await.expect("guest");
        let far = UdpSocket::bind("127.0.0.9:0").await.expect("stranger");
        // Messages that are no questions, are too large, or come from elsewhere get no answer.
        far.send_to(&question(1), at).await.expect("sent");
        near.send_to(&question(1)[..11], at).await.expect("sent");
        near.send_to(&[question(2), vec![0; MOST]].concat(), at).await.expect("sent");
        let mut answer = question(3);
        answer[2] |= ANSWERS;
        near.send_to(&answer, at).await.expect("sent");
        near.send_to(&question(4), at).await.expect("sent");
        let mut buffer = [0; MOST];
        let (length, _) = near.recv_from(&mut buffer).await.expect("answer");
        answer[0] = 4;
        assert_eq!(buffer[..length], answer[..]);
        assert!(far.try_recv(&mut buffer).is_err());

        let mut stream = TcpStream::connect(at).await.expect("tcp");
        for number in [5, 6] {
            write(&mut stream, &question(number)).await.expect("sent");
            answer[0] = number;
            assert_eq!(read(&mut stream, MOST).await.expect("answer"), answer);
        }
    }
}
