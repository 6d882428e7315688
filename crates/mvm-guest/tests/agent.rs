//! The real agent, over a socket pair in this process.

use mvm_code::Code;
use mvm_guest::agent::{Agent, Powers};
use mvm_guest::channel::{Channel, Stream};
use mvm_guest::frame::{self, Frame};
use mvm_guest::protocol::{ExecRequest, Exit, Request, Tty, VERSION};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const DEADLINE: Duration = Duration::from_secs(5);

async fn channel() -> Channel {
    let (host, guest) = UnixStream::pair().expect("pair");
    tokio::spawn(Agent::new(Powers::Tame).serve_stream(guest));
    Channel::from_stream(host, DEADLINE).await.expect("session")
}

async fn begin(channel: &Channel, request: ExecRequest) -> Stream {
    let mut stream = channel.open_raw().await.expect("stream");
    frame::ask::<()>(&mut stream, Request::Exec(request)).await.expect("started");
    stream
}

fn sh(script: &str) -> ExecRequest {
    ExecRequest {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        cwd: Some("/tmp".to_owned()),
        ..ExecRequest::default()
    }
}

/// Collects standard output, standard error and the exit.
async fn finish(stream: &mut Stream) -> (Vec<u8>, Vec<u8>, Exit) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match frame::read(stream).await.expect("frame") {
            Some(Frame::Stdout(bytes)) => out.extend(bytes),
            Some(Frame::Stderr(bytes)) => err.extend(bytes),
            Some(Frame::Exit(exit)) => return (out, err, exit),
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[tokio::test]
async fn output_and_status_come_back() {
    let channel = channel().await;
    let mut stream = begin(&channel, sh("echo out; echo err >&2; exit 7")).await;
    let (out, err, exit) = finish(&mut stream).await;
    assert_eq!((&out[..], &err[..]), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(exit, Exit { code: Some(7), signal: None });
}

#[tokio::test]
async fn a_signal_ends_the_program() {
    let channel = channel().await;
    let mut stream = begin(&channel, sh("echo up; exec sleep 100")).await;
    assert_eq!(frame::read(&mut stream).await.expect("up"), Some(Frame::Stdout(b"up\n".to_vec())));
    frame::write(&mut stream, &Frame::Signal(15)).await.expect("signal");
    let (_, _, exit) = finish(&mut stream).await;
    assert_eq!(exit, Exit { code: None, signal: Some(15) });
    assert_eq!(exit.shell_status(), 143);
}

#[tokio::test]
async fn much_data_goes_through_both_ways() {
    let channel = channel().await;
    let request = ExecRequest { stdin: true, ..sh("cat") };
    let mut stream = begin(&channel, request).await;
    let bytes: Vec<u8> = (0..10_000_000u32).map(|n| (n * 7 % 251) as u8).collect();
    let (mut from, mut to) = tokio::io::split(&mut stream);
    let send = async {
        for piece in bytes.chunks(50_000) {
            frame::write(&mut to, &Frame::Stdin(piece.to_vec())).await.expect("write");
        }
        frame::write(&mut to, &Frame::StdinClosed).await.expect("close");
    };
    let receive = async {
        let mut out = Vec::new();
        while let Some(words) = frame::read(&mut from).await.expect("frame") {
            match words {
                Frame::Stdout(bytes) => out.extend(bytes),
                Frame::Exit(exit) => return (out, exit),
                other => panic!("unexpected {other:?}"),
            }
        }
        panic!("no exit");
    };
    let ((), (out, exit)) = tokio::join!(send, receive);
    assert_eq!(exit.code, Some(0));
    assert!(out == bytes);
}

#[tokio::test]
async fn a_terminal_is_one() {
    let channel = channel().await;
    let tty = Tty { rows: 30, cols: 91, term: "xterm".to_owned() };
    let mut stream =
        begin(&channel, ExecRequest { tty: Some(tty), ..sh("test -t 0 && stty size") }).await;
    let (out, _, exit) = finish(&mut stream).await;
    assert_eq!(exit.code, Some(0));
    assert_eq!(String::from_utf8_lossy(&out).trim(), "30 91");
}

#[tokio::test]
async fn what_cannot_be_run_is_said() {
    let channel = channel().await;
    let mut stream = channel.open_raw().await.expect("stream");
    let request = ExecRequest { argv: vec!["/no/such/program".to_owned()], ..sh("") };
    let error = frame::ask::<()>(&mut stream, Request::Exec(request)).await.expect_err("refused");
    assert_eq!(error.code(), Code::CommandNotFound);
}

#[tokio::test]
async fn a_host_that_goes_away_ends_the_program() {
    let dir = tempfile::tempdir().expect("dir");
    let mark = dir.path().join("alive");
    let (host, guest) = UnixStream::pair().expect("pair");
    tokio::spawn(Agent::new(Powers::Tame).serve_stream(guest));
    let channel = Channel::from_stream(host, DEADLINE).await.expect("session");
    let script = format!("while :; do date +%s%N > {}; echo up; sleep 0.05; done", mark.display());
    let mut stream = begin(&channel, sh(&script)).await;
    frame::read(&mut stream).await.expect("up");
    drop(stream);
    tokio::time::sleep(Duration::from_millis(900)).await;
    let before = std::fs::read_to_string(&mark).expect("mark");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(std::fs::read_to_string(&mark).expect("mark"), before, "it still runs");
}

#[tokio::test]
async fn files_go_in_and_come_out() {
    let dir = tempfile::tempdir().expect("dir");
    let source = dir.path().join("tree");
    std::fs::create_dir(&source).expect("dir");
    std::fs::write(source.join("a"), vec![9; 300_000]).expect("file");
    std::os::unix::fs::symlink("a", source.join("link")).expect("link");
    let channel = channel().await;
    let mut stream = channel.open_raw().await.expect("stream");
    let get = Request::Get { path: source.display().to_string(), notes: false };
    frame::ask::<()>(&mut stream, get).await.expect("get");
    let mut archive = Vec::new();
    loop {
        match frame::read(&mut stream).await.expect("frame") {
            Some(Frame::Data(bytes)) => archive.extend(bytes),
            Some(Frame::End) => break,
            other => panic!("unexpected {other:?}"),
        }
    }
    let target = dir.path().join("out");
    let mut stream = channel.open_raw().await.expect("stream");
    let put = Request::Put { path: target.display().to_string(), notes: false };
    frame::ask::<()>(&mut stream, put).await.expect("put");
    for piece in archive.chunks(10_000) {
        frame::write(&mut stream, &Frame::Data(piece.to_vec())).await.expect("data");
    }
    frame::write(&mut stream, &Frame::End).await.expect("end");
    frame::reply::<()>(&mut stream).await.expect("unpacked");
    assert_eq!(std::fs::read(target.join("tree/a")).expect("a"), vec![9; 300_000]);
    assert_eq!(std::fs::read_link(target.join("tree/link")).expect("link").to_str(), Some("a"));
    let mut stream = channel.open_raw().await.expect("stream");
    let get = Request::Get { path: "/no/such/file".to_owned(), notes: false };
    assert_eq!(frame::ask::<()>(&mut stream, get).await.expect_err("none").code(), Code::NotFound);
}

/// A host is killed in the middle of a packet; the next one is served all the same.
#[tokio::test]
async fn a_torn_session_is_replaced() {
    let (mut outside, guest) = tokio::io::duplex(1 << 20);
    tokio::spawn(Agent::new(Powers::Tame).serve_stream(guest));
    for round in 0..5u8 {
        let (host, mut between) = tokio::io::duplex(1 << 16);
        let opening = tokio::spawn(Channel::from_stream(host, DEADLINE));
        // Carries bytes until the session has worked, then cuts it off in mid-packet.
        let worked = tokio::spawn(async move {
            let channel = opening.await.expect("task").expect("session");
            channel.hello().await.expect("hello").protocol
        });
        let (mut from_host, mut to_host) = tokio::io::split(&mut between);
        let (mut from_guest, mut to_guest) = tokio::io::split(&mut outside);
        let copies = async {
            tokio::join!(
                tokio::io::copy(&mut from_host, &mut to_guest),
                tokio::io::copy(&mut from_guest, &mut to_host),
            )
        };
        let _ = tokio::time::timeout(Duration::from_millis(1500), copies).await;
        assert_eq!(worked.await.expect("task"), VERSION, "round {round}");
        outside
            .write_all(&[0xf5, b'm', b'v', b'm', 3, 0, 0, 0, 0, 0, 0, 0, round, 0x30, 0, 1, 2])
            .await
            .expect("torn");
    }
}

#[tokio::test]
async fn ports_of_the_guest_are_reached() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.expect("accept");
        client.write_all(b"hello").await.expect("write");
    });
    let channel = channel().await;
    let mut stream = channel.open_raw().await.expect("stream");
    frame::ask::<()>(&mut stream, Request::Connect { port }).await.expect("connect");
    let mut words = [0; 5];
    stream.read_exact(&mut words).await.expect("read");
    assert_eq!(&words, b"hello");
}

/// A child that holds the pipe, silent or not, does not delay the exit, and nothing that the
/// program itself wrote is lost.
#[tokio::test]
async fn children_that_stay_do_not_hold_the_exit_back() {
    let channel = channel().await;
    let dir = tempfile::tempdir().expect("dir");
    let mark = dir.path().join("pid");
    for child in ["sleep 20", "while :; do echo x; sleep 0.03; done", "yes"] {
        let script = format!("({child}) & echo $! > {}; echo mine; exit 3", mark.display());
        let start = std::time::Instant::now();
        let mut program = channel.exec(sh(&script)).await.expect("exec");
        let (out, _, exit) = program.finish().await.expect("finish");
        assert_eq!(exit.code, Some(3));
        assert!(out.windows(5).any(|w| w == b"mine\n"), "{child}");
        assert!(start.elapsed() < Duration::from_secs(4), "{child}: {:?}", start.elapsed());
        let pid = std::fs::read_to_string(&mark).expect("pid");
        let pid = rustix::process::Pid::from_raw(pid.trim().parse().expect("pid")).expect("pid");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Both sides send as fast as they can and nobody reads; a new host gets through all the same.
#[tokio::test]
async fn a_stuck_session_is_replaced() {
    let (mut outside, guest) = tokio::io::duplex(1 << 16);
    tokio::spawn(Agent::new(Powers::Tame).serve_stream(guest));
    let (host, mut between) = tokio::io::duplex(1 << 16);
    let stuck = tokio::spawn(async move {
        let channel = Channel::from_stream(host, DEADLINE).await.expect("session");
        let mut program = channel.exec(ExecRequest { stdin: true, ..sh("exec cat") }).await?;
        loop {
            program.input.write(&[0xf5; 100_000]).await?;
        }
        #[allow(unreachable_code)]
        Ok::<_, mvm_guest::Error>(())
    });
    let copies = tokio::io::copy_bidirectional(&mut between, &mut outside);
    let _ = tokio::time::timeout(Duration::from_millis(1000), copies).await;
    stuck.abort();
    let channel = Channel::from_stream(outside, DEADLINE).await.expect("the next session");
    channel.hello().await.expect("hello");
}

/// A restarted agent knows no sessions, and the host notices.
#[tokio::test]
async fn a_session_that_the_agent_forgot_is_closed() {
    let (host, mut between) = tokio::io::duplex(1 << 16);
    let (mut outside, guest) = tokio::io::duplex(1 << 16);
    let first = tokio::spawn(Agent::new(Powers::Tame).serve_stream(guest));
    let opening = tokio::spawn(Channel::from_stream(host, DEADLINE));
    let copies = tokio::io::copy_bidirectional(&mut between, &mut outside);
    let _ = tokio::time::timeout(Duration::from_millis(500), copies).await;
    let channel = opening.await.expect("task").expect("session");
    first.abort();
    let (mut outside, guest) = tokio::io::duplex(1 << 16);
    tokio::spawn(Agent::new(Powers::Tame).serve_stream(guest));
    let copies = tokio::io::copy_bidirectional(&mut between, &mut outside);
    let ask = tokio::time::timeout(DEADLINE, channel.hello());
    let closed = async {
        let answer = ask.await;
        assert!(matches!(answer, Ok(Err(_))), "{answer:?}");
        assert!(channel.is_closed());
    };
    tokio::select! {
        copied = copies => panic!("{copied:?}"),
        () = closed => {}
    }
}

#[tokio::test]
async fn typed_copies_go_both_ways_and_say_what_is_wrong() {
    let dir = tempfile::tempdir().expect("dir");
    std::fs::write(dir.path().join("f"), vec![5; 200_000]).expect("file");
    let channel = channel().await;
    let mut archive = Vec::new();
    let path = |name: &str| dir.path().join(name).display().to_string();
    channel.get(&path("f"), &mut archive).await.expect("get");
    channel.put(&path("out"), &archive[..]).await.expect("put");
    assert_eq!(std::fs::read(dir.path().join("out/f")).expect("f"), vec![5; 200_000]);
    // The archive is cut off in the middle of the file.
    let error = channel.put(&path("cut"), &archive[..100_000]).await.expect_err("cut");
    assert!(matches!(error, mvm_guest::Error::Guest { .. }), "{error:?}");
    let error = channel.get(&path("none"), &mut archive).await.expect_err("none");
    assert_eq!(error.code(), Code::NotFound);
    channel.close().await;
    assert!(channel.is_closed() && channel.hello().await.is_err());
}

/// What could not be copied unchanged is noted by the side that saw it, and reaches the caller.
#[tokio::test]
async fn what_a_guest_leaves_out_is_told_to_its_host() {
    let dir = tempfile::tempdir().expect("dir");
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).expect("dir");
    std::fs::write(tree.join("f"), b"there").expect("file");
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).expect("socket");
    let channel = channel().await;
    let mut archive = Vec::new();
    let notes = channel.get(&tree.display().to_string(), &mut archive).await.expect("get");
    let said = format!("{} was left out: it is a socket", tree.join("socket").display());
    assert_eq!(notes.lines(), [said.as_str()]);
    let notes = channel.put(&dir.path().join("out").display().to_string(), &archive[..]).await;
    assert!(notes.expect("put").is_empty());
    assert!(dir.path().join("out/tree/f").exists());
    // Both directions at once, as the command line does it.
    let (source, target) = (tree.clone(), dir.path().join("in").display().to_string());
    let pack = move |to: &mut dyn std::io::Write| {
        let mut packer = mvm_archive::Packer::new(to);
        packer.add(&source, b"t")?;
        Ok(packer.finish()?.1)
    };
    let mut stream = channel.open_raw().await.expect("stream");
    let notes = mvm_guest::transfer::put_packed(&mut stream, &target, pack).await.expect("put");
    assert_eq!(notes.lines(), [said]);
    assert_eq!(std::fs::read(dir.path().join("in/t/f")).expect("f"), b"there");
    // If a packer fails, its error is reported, and the guest does not take a half for the whole.
    let pack = |_: &mut dyn std::io::Write| Err(std::io::Error::other("no disk"));
    let mut stream = channel.open_raw().await.expect("stream");
    let error = mvm_guest::transfer::put_packed(&mut stream, &target, pack).await.expect_err("it");
    assert!(error.to_string().contains("no disk"), "{error}");
}

/// Guests may be older than their host: they do not know of notes, and send nothing in their place.
#[tokio::test]
async fn a_guest_of_an_older_version_sends_no_notes() {
    struct Old;

    impl mvm_guest::serve::Answer for Old {
        async fn answer(&self, request: Request, stream: &mut Stream) -> mvm_guest::Result<()> {
            mvm_guest::serve::reply(stream, &()).await?;
            if let Request::Get { .. } = request {
                frame::write(stream, &Frame::Data(b"bytes".to_vec())).await?;
                return frame::write(stream, &Frame::End).await;
            }
            while frame::read(stream).await? != Some(Frame::End) {}
            mvm_guest::serve::reply(stream, &()).await
        }
    }

    let (host, guest) = UnixStream::pair().expect("pair");
    tokio::spawn(mvm_guest::serve::serve_stream(std::sync::Arc::new(Old), guest));
    let channel = Channel::from_stream(host, DEADLINE).await.expect("session");
    assert!(channel.put("/", &b"bytes"[..]).await.expect("put").is_empty());
    let mut archive = Vec::new();
    assert!(channel.get("/f", &mut archive).await.expect("get").is_empty());
    assert_eq!(archive, b"bytes");
    // A request as a host of an older version sends it.
    let asked: Request = serde_json::from_str(r#"{"op":"put","path":"/"}"#).expect("request");
    assert_eq!(asked, Request::Put { path: "/".to_owned(), notes: false });
}
