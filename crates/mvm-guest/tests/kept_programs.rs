//! Programs that outlive the stream over which they were started.

use mvm_code::Code;
use mvm_guest::agent::{Agent, Powers};
use mvm_guest::channel::Channel;
use mvm_guest::exec::{ExecStream, Output};
use mvm_guest::protocol::{ExecRequest, Exit, Keep};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;

const DEADLINE: Duration = Duration::from_secs(20);

/// Begins a session with the agent: when it ends, so do its streams.
async fn session(agent: &Arc<Agent>) -> Channel {
    let (host, guest) = UnixStream::pair().expect("pair");
    tokio::spawn(agent.clone().serve_stream(guest));
    Channel::from_stream(host, DEADLINE).await.expect("session")
}

fn kept(key: &str, offset: u64, script: &str) -> ExecRequest {
    ExecRequest {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        cwd: Some("/tmp".to_owned()),
        keep: Some(Keep { key: key.to_owned(), offset, ..Keep::default() }),
        ..ExecRequest::default()
    }
}

/// Receives a piece, and acknowledges it if `say` is set.
async fn next(program: &mut ExecStream, seen: &mut Vec<u8>, say: bool) -> Option<Exit> {
    match program.output.next().await.expect("output") {
        Output::Stdout(bytes) | Output::Stderr(bytes) => seen.extend(bytes),
        Output::Taken(_) => {}
        Output::Exit(exit) => return Some(exit),
    }
    if say {
        program.input.acknowledge(seen.len() as u64).await.expect("said");
    }
    None
}

async fn to_the_end(program: &mut ExecStream, seen: &mut Vec<u8>) -> Exit {
    loop {
        if let Some(exit) = next(program, seen, true).await {
            return exit;
        }
    }
}

async fn is_there(path: &Path) {
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Hosts come and go at any moment, and have acknowledged what they saw or not: all of the output
/// arrives, once, and the program has run once.
#[tokio::test]
async fn output_is_whole_however_often_its_host_is_killed() {
    let agent = Agent::new(Powers::Tame);
    let dir = tempfile::tempdir().expect("directory");
    let runs = dir.path().join("runs");
    let script = format!("echo run >> {}; seq 1 200000; exit 3", runs.display());
    let mut seen = Vec::new();
    let mut pieces = 0;
    let exit = 'killed: loop {
        let channel = session(&agent).await;
        let request = kept("j-1", seen.len() as u64, &script);
        let mut program = channel.exec(request).await.expect("attached");
        assert_eq!(program.kept.expect("it is kept").from, seen.len() as u64);
        for n in 0..5 {
            pieces += 1;
            // The host is killed before it has acknowledged the last piece.
            if let Some(exit) = next(&mut program, &mut seen, n < 4).await {
                break 'killed exit;
            }
        }
        channel.close().await;
    };
    let whole: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert!(seen == whole.as_bytes());
    assert_eq!(exit.code, Some(3));
    assert!(pieces > 10, "it was killed now and then");
    assert_eq!(std::fs::read_to_string(&runs).expect("runs"), "run\n");
    // How the program ended is remembered, and reported again to any host that asks.
    let channel = session(&agent).await;
    let mut program =
        channel.exec(kept("j-1", seen.len() as u64, "exit 9")).await.expect("attached");
    assert_eq!(to_the_end(&mut program, &mut seen).await.code, Some(3));
}

/// A host that takes the place of one that has acknowledged nothing says what it has: the program,
/// whose output has filled the memory, goes on.
#[tokio::test]
async fn what_the_next_host_has_already_is_not_waited_for() {
    let agent = Agent::new(Powers::Tame);
    let script = "seq 1 400000";
    let channel = session(&agent).await;
    let mut program = channel.exec(kept("k", 0, script)).await.expect("started");
    let mut seen = Vec::new();
    let silence = Duration::from_secs(1);
    // Once the memory is full nothing comes any more.
    while tokio::time::timeout(silence, next(&mut program, &mut seen, false)).await.is_ok() {}
    drop(program);
    channel.close().await;
    let channel = session(&agent).await;
    let mut program = channel.exec(kept("k", seen.len() as u64, script)).await.expect("attached");
    assert_eq!(to_the_end(&mut program, &mut seen).await.code, Some(0));
    let whole: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
    assert!(seen == whole.as_bytes());
}

/// Output that exceeds the memory goes to the disk while no host is attached; the program does not
/// wait.
#[tokio::test]
async fn a_program_goes_on_while_nobody_is_attached() {
    let agent = Agent::new(Powers::Tame);
    let dir = tempfile::tempdir().expect("directory");
    let (go, done) = (dir.path().join("go"), dir.path().join("done"));
    let script = format!(
        "echo up; while ! test -e {}; do sleep 0.01; done; \
         seq 1 600000; echo err >&2; touch {}",
        go.display(),
        done.display()
    );
    let channel = session(&agent).await;
    let mut program = channel.exec(kept("k", 0, &script)).await.expect("started");
    let mut seen = Vec::new();
    next(&mut program, &mut seen, true).await;
    drop(program);
    channel.close().await;
    std::fs::write(&go, "").expect("go");
    is_there(&done).await;
    let channel = session(&agent).await;
    let mut program = channel.exec(kept("k", seen.len() as u64, "")).await.expect("attached");
    assert_eq!(to_the_end(&mut program, &mut seen).await.code, Some(0));
    let whole: String = (1..=600_000).map(|n| format!("{n}\n")).collect();
    assert!(seen == format!("up\n{whole}err\n").into_bytes());
}

#[tokio::test]
async fn an_end_is_an_end_and_nothing_is_started_in_its_place() {
    let agent = Agent::new(Powers::Tame);
    let channel = session(&agent).await;
    let mut program = channel.exec(kept("k", 0, "echo up; exec sleep 600")).await.expect("up");
    let mut seen = Vec::new();
    next(&mut program, &mut seen, false).await;
    // Another host takes its place, and the first one gets an error.
    let other = session(&agent).await;
    let mut taken = other.exec(kept("k", 0, "")).await.expect("attached");
    let error = program.output.next().await.expect_err("somebody else has it");
    assert_eq!(error.code(), Code::TakenOver);
    taken.input.end().await.expect("told");
    let mut seen = Vec::new();
    let exit = to_the_end(&mut taken, &mut seen).await;
    assert_eq!((&seen[..], exit.signal.is_some()), (&b"up\n"[..], true));
    let mut again = other.exec(kept("k", 3, "echo twice")).await.expect("attached");
    assert_eq!(to_the_end(&mut again, &mut seen).await, exit);
    assert_eq!(seen, b"up\n");
}

#[tokio::test]
async fn what_cannot_be_taken_up_is_refused() {
    let agent = Agent::new(Powers::Tame);
    let channel = session(&agent).await;
    let hello = channel.hello().await.expect("hello");
    assert!(hello.life.as_ref().is_some_and(|life| !life.is_empty()));
    let with = |change: &dyn Fn(&mut Keep)| {
        let mut request = kept("k", 0, "true");
        change(request.keep.as_mut().expect("kept"));
        request
    };
    let elsewhere = with(&|keep| keep.life = Some("another".to_owned()));
    let known = with(&|keep| keep.life.clone_from(&hello.life));
    for (request, code) in [
        (elsewhere, Code::GuestRestarted),
        (with(&|keep| keep.attach = true), Code::NotFound),
        (with(&|keep| keep.offset = 1), Code::InvalidValue),
        (with(&|keep| keep.key.clear()), Code::InvalidValue),
    ] {
        let error = channel.exec(request).await.expect_err("refused");
        assert_eq!(error.code(), code);
    }
    // A program that has printed less than the offset claims is started all the same.
    let mut program = channel.exec(known).await.expect("started");
    assert_eq!(to_the_end(&mut program, &mut Vec::new()).await.code, Some(0));
}

#[tokio::test]
async fn a_session_that_nobody_comes_back_to_is_ended() {
    let agent = Agent::new(Powers::Tame);
    let dir = tempfile::tempdir().expect("directory");
    let gone = dir.path().join("gone");
    let script =
        format!("trap 'touch {}; exit' TERM HUP; echo up; sleep 600 & wait", gone.display());
    let mut request = kept("k", 0, &script);
    request.keep.as_mut().expect("kept").unattended_s = Some(1);
    let channel = session(&agent).await;
    let mut program = channel.exec(request).await.expect("started");
    next(&mut program, &mut Vec::new(), true).await;
    channel.close().await;
    is_there(&gone).await;
}

/// Input continues where the program was last given it.
#[tokio::test]
async fn input_goes_on_where_it_was_cut() {
    let agent = Agent::new(Powers::Tame);
    let mut request = kept("k", 0, "cat");
    request.stdin = true;
    let channel = session(&agent).await;
    let mut program = channel.exec(request.clone()).await.expect("started");
    program.input.write(b"one ").await.expect("write");
    while !matches!(program.output.next().await.expect("output"), Output::Taken(4)) {}
    channel.close().await;
    let channel = session(&agent).await;
    let mut program = channel.exec(request).await.expect("attached");
    assert_eq!(program.kept.expect("it is kept").input, 4);
    program.input.write(b"two").await.expect("write");
    program.input.close().await.expect("close");
    let mut seen = Vec::new();
    assert_eq!(to_the_end(&mut program, &mut seen).await.code, Some(0));
    assert_eq!(seen, b"one two");
}
