//! Programs that outlive the stream over which they were started.
//!
//! Each has a key, which the host chooses. A request with an existing key attaches to its program
//! instead of starting another, so that a request may be repeated safely. Output is kept until the
//! host acknowledges it ([`super::spool`]), and so is how the program ended. A program that waits
//! for a host to read its output is ended when its place is needed and no host is attached.

use super::exec;
use super::oom::OomKills;
use super::program::{self, Group, Input, Program};
use super::spool::{Source, Spool};
use crate::frame::{self, Frame};
use crate::protocol::{ExecRequest, Exit, Keep, ProgramPosition as Reply};
use crate::serve::reply;
use crate::{Error, Result};
use mvm_code::Code;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};

/// How many ended programs are remembered.
const ENDED: usize = 64;
/// How many kept programs may run at once.
const MOST: usize = 256;
/// The longest key, in bytes.
const KEY: usize = 128;
/// Folder for output that does not fit into memory.
const DISK: &str = "/var/tmp";
/// The last line of a program's output if some of it was lost.
const LOST: &[u8] = b"mvm: the rest of the output is lost: nobody came back to read it\n";

/// All kept programs of this agent.
#[derive(Debug)]
pub struct Registry {
    /// Identifies this run of the agent: a later agent knows nothing of these programs.
    life: String,
    most: usize,
    disk: Arc<Path>,
    programs: Mutex<HashMap<String, Arc<KeptProgram>>>,
    /// The number of programs that run.
    running: Arc<AtomicU64>,
}

/// A kept program.
#[derive(Debug)]
struct KeptProgram {
    /// Position in the order of ends; 0 while the program runs.
    ended: AtomicU64,
    spool: Mutex<Spool>,
    /// Notified when something in the spool, or the count of taken input, has changed.
    changed: watch::Sender<()>,
    /// Counts the hosts that have attached: a later one replaces the one before.
    turn: watch::Sender<u64>,
    /// The host's frames for the program.
    frames: mpsc::UnboundedSender<Frame>,
    /// Bytes of standard input that the program was given.
    input: AtomicU64,
    goal: watch::Sender<Goal>,
    /// Folder for output that does not fit into memory.
    disk: Arc<Path>,
}

/// What a program is to do. A goal is only ever replaced by a later one of this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Goal {
    Run,
    /// To end; its output waits for a host.
    End,
    /// To end without waiting for a host: what finds no space in the spool is lost.
    Abandon,
}

fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock()
}

fn refusal(code: Code, message: String) -> Error {
    Error::Guest { code, message }
}

impl Registry {
    /// Makes an empty registry with a new life.
    pub fn new() -> Registry {
        Registry::with(MOST, Path::new(DISK))
    }

    fn with(most: usize, disk: &Path) -> Registry {
        let drawn = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
        let (programs, running) = Default::default();
        Registry { life: drawn.trim().to_owned(), most, disk: disk.into(), programs, running }
    }

    /// Returns the id by which a host notices that another agent has replaced this one; `None` if
    /// the kernel gave none.
    pub fn life(&self) -> Option<String> {
        Some(self.life.clone()).filter(|life| !life.is_empty())
    }

    /// Returns the number of programs that run.
    pub fn running(&self) -> u64 {
        self.running.load(Ordering::Relaxed)
    }

    /// Starts the program, or attaches to the existing one, until it has ended or the host goes
    /// away. Errors: `invalid_value`, `guest_restarted`, `not_found`, `busy`, `taken_over`.
    pub async fn run(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin + Send),
        request: ExecRequest,
        keep: Keep,
    ) -> Result<()> {
        let kept = self.find(&request, &keep)?;
        let attached = Attached::new(&kept);
        // What the host has need not be kept: where a host was killed before it could acknowledge that,
        // the program would wait for the word, and the next host for more output.
        let place = locked(&kept.spool).take_up(keep.offset);
        kept.bump();
        let Some(from) = place else {
            let what = format!("the program {} has not printed {} bytes", keep.key, keep.offset);
            return Err(refusal(Code::InvalidValue, what));
        };
        reply(stream, &Reply { from, input: kept.input.load(Ordering::Relaxed) }).await?;
        attached.serve(stream, from).await
    }

    fn find(&self, request: &ExecRequest, keep: &Keep) -> Result<Arc<KeptProgram>> {
        if keep.key.is_empty() || keep.key.len() > KEY {
            return Err(refusal(Code::InvalidValue, format!("a key of {} bytes", keep.key.len())));
        }
        if keep.life.as_ref().is_some_and(|life| *life != self.life) {
            let what = "the guest was started anew: the program is gone".to_owned();
            return Err(refusal(Code::GuestRestarted, what));
        }
        // The lock is held while the program is started, so that two requests with one key start
        // one program.
        let mut programs = locked(&self.programs);
        if let Some(kept) = programs.get(&keep.key) {
            return Ok(kept.clone());
        }
        if keep.attach {
            return Err(refusal(Code::NotFound, format!("there is no program {}", keep.key)));
        }
        forget_oldest(&mut programs);
        if programs.values().filter(|kept| kept.counts()).count() >= self.most {
            let Some(abandoned) = abandoned_longest(&programs) else {
                let what = format!("{} programs are kept already", self.most);
                return Err(refusal(Code::Busy, what));
            };
            abandoned.set_goal(Goal::Abandon);
        }
        let program = program::spawn(request)?;
        // The channel needs no bound: the host limits what it sends beyond what was taken.
        let (to_program, frames) = mpsc::unbounded_channel();
        let kept = Arc::new(KeptProgram {
            ended: AtomicU64::new(0),
            spool: Mutex::default(),
            changed: watch::Sender::new(()),
            turn: watch::Sender::new(0),
            frames: to_program,
            input: AtomicU64::new(0),
            goal: watch::Sender::new(Goal::Run),
            disk: self.disk.clone(),
        });
        programs.insert(keep.key.clone(), kept.clone());
        let alone = keep.unattended_s.map(Duration::from_secs);
        let running = self.running.clone();
        running.fetch_add(1, Ordering::Relaxed);
        let of_program = kept.clone();
        tokio::spawn(async move {
            of_program.run_to_end(program, frames, alone).await;
            running.fetch_sub(1, Ordering::Relaxed);
        });
        Ok(kept)
    }
}

/// Forgets the programs that ended first if there are too many. A running program is never
/// forgotten.
fn forget_oldest(programs: &mut HashMap<String, Arc<KeptProgram>>) {
    let mut ended: Vec<(u64, String)> = programs
        .iter()
        .map(|(key, kept)| (kept.ended.load(Ordering::Relaxed), key.clone()))
        .filter(|(ended, _)| *ended > 0)
        .collect();
    ended.sort();
    let over = ended.len().saturating_sub(ENDED - 1);
    for (_, key) in ended.drain(..over) {
        programs.remove(&key);
    }
}

/// Returns the program that was left by its host longest ago, of those that have no host and wait
/// for one to read their output. They get nothing done.
fn abandoned_longest(programs: &HashMap<String, Arc<KeptProgram>>) -> Option<&Arc<KeptProgram>> {
    let waiting = programs.values().filter(|kept| kept.counts());
    let left = waiting.filter_map(|kept| Some((locked(&kept.spool).abandoned()?, kept)));
    left.min_by_key(|(since, _)| *since).map(|(_, kept)| kept)
}

impl KeptProgram {
    fn bump(&self) {
        self.changed.send_replace(());
    }

    fn set_goal(&self, goal: Goal) {
        self.goal.send_if_modified(|current| {
            let later = goal > *current;
            *current = goal.max(*current);
            later
        });
    }

    /// Returns whether this is one of the programs whose number is limited.
    fn counts(&self) -> bool {
        self.ended.load(Ordering::Relaxed) == 0 && *self.goal.borrow() != Goal::Abandon
    }

    /// Runs the program to its end.
    async fn run_to_end(
        self: Arc<Self>,
        mut program: Program,
        frames: mpsc::UnboundedReceiver<Frame>,
        alone: Option<Duration>,
    ) {
        let kills = OomKills::now();
        let mut group = Group(program.child.id());
        let (over, ended) = watch::channel(false);
        let mut forwards = tokio::task::JoinSet::new();
        for (from, source) in program.outputs.drain(..) {
            let to = self.clone();
            let ended = ended.clone();
            forwards.spawn(exec::forward(from, ended, move |bytes| {
                let to = to.clone();
                async move { to.take(source, bytes).await }
            }));
        }
        let (input, terminal) = (program.input.take(), program.terminal.take());
        let listen = tokio::spawn(self.clone().listen(frames, input, terminal, group.0));
        let mut waited = tokio::task::spawn_blocking(move || program.child.wait());
        let mut end = self.goal.subscribe();
        let ending = async {
            tokio::select! {
                _ = end.wait_for(|goal| *goal == Goal::End) => {}
                () = self.left(alone) => {}
            }
        };
        let status = tokio::select! {
            status = &mut waited => {
                group.ended();
                status
            }
            () = ending => {
                drop(group);
                waited.await
            }
        };
        let _ = over.send(true);
        let drained = async { while forwards.join_next().await.is_some() {} };
        tokio::pin!(drained);
        // Output that finds no space waits for a host, but not for one that has given up.
        tokio::select! {
            () = &mut drained => {}
            () = self.left(alone) => drained.await,
        }
        listen.abort();
        // If the wait fails, the status is unknown, for which a shell reports 255.
        let unknown = Exit { code: None, signal: None };
        let exit = status.ok().and_then(std::result::Result::ok).map_or(unknown, program::exit_of);
        if let Some(words) = kills.words(exit) {
            // If the spool has no space for the line, the end is reported without it.
            let _ = locked(&self.spool).push(Source::Err, words, &self.disk);
        }
        static ENDS: AtomicU64 = AtomicU64::new(1);
        self.ended.store(ENDS.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        locked(&self.spool).finish(exit, LOST);
        self.bump();
    }

    /// Stores output, waiting until there is space for it. Returns false if it is lost, since
    /// nobody is waited for.
    async fn take(&self, source: Source, mut bytes: Vec<u8>) -> bool {
        let mut changed = self.changed.subscribe();
        let mut goal = self.goal.subscribe();
        loop {
            changed.borrow_and_update();
            let pushed = locked(&self.spool).push(source, bytes, &self.disk);
            match pushed {
                Ok(()) => {
                    self.bump();
                    return true;
                }
                Err(back) => bytes = back,
            }
            if *goal.borrow_and_update() == Goal::Abandon {
                locked(&self.spool).lost = true;
                return false;
            }
            tokio::select! {
                _ = changed.changed() => {}
                _ = goal.changed() => {}
            }
        }
    }

    /// Carries out the hosts' frames while the program runs.
    async fn listen(
        self: Arc<Self>,
        mut frames: mpsc::UnboundedReceiver<Frame>,
        mut input: Option<Input>,
        terminal: Option<rustix::fd::OwnedFd>,
        pid: u32,
    ) {
        while let Some(frame) = frames.recv().await {
            let taken = if let Frame::Stdin(bytes) = &frame { bytes.len() as u64 } else { 0 };
            exec::obey(frame, &mut input, terminal.as_ref(), pid).await;
            if taken > 0 {
                self.input.fetch_add(taken, Ordering::Relaxed);
                self.bump();
            }
        }
    }

    /// Resolves once no host is waited for any more: none has been attached for `alone`, or the
    /// program's place was needed.
    async fn left(&self, alone: Option<Duration>) {
        let mut goal = self.goal.subscribe();
        tokio::select! {
            _ = goal.wait_for(|goal| *goal == Goal::Abandon) => {}
            () = self.unattended(alone) => self.set_goal(Goal::Abandon),
        }
    }

    /// Resolves once no host has been attached for `alone`; never if that is `None`.
    async fn unattended(&self, alone: Option<Duration>) {
        let Some(alone) = alone else { return std::future::pending().await };
        let mut changed = self.changed.subscribe();
        let mut attached = async move |wanted: bool| {
            // The sender lives as long as the program, so waiting cannot fail.
            while (locked(&self.spool).is_attached()) != wanted {
                let _ = changed.changed().await;
            }
        };
        loop {
            attached(false).await;
            if tokio::time::timeout(alone, attached(true)).await.is_err() {
                return;
            }
        }
    }
}

/// A host that is attached to a program.
struct Attached {
    kept: Arc<KeptProgram>,
    turn: u64,
}

impl Attached {
    fn new(kept: &Arc<KeptProgram>) -> Attached {
        let mut own = 0;
        kept.turn.send_modify(|turn| {
            *turn += 1;
            own = *turn;
        });
        locked(&kept.spool).attach();
        kept.bump();
        Attached { kept: kept.clone(), turn: own }
    }

    /// Sends the program's output from `from` on, and how it ended; carries out the host's frames.
    async fn serve(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin + Send),
        from: u64,
    ) -> Result<()> {
        let (mut from_host, mut to_host) = tokio::io::split(stream);
        let mut turn = self.kept.turn.subscribe();
        let talk = async {
            self.talk(&mut to_host, from).await?;
            // The host must still acknowledge the rest.
            std::future::pending::<Result<()>>().await
        };
        tokio::select! {
            received = self.receive(&mut from_host) => received,
            talked = talk => talked,
            _ = turn.wait_for(|turn| *turn != self.turn) => {
                Err(refusal(Code::TakenOver, "somebody else has attached to the program".to_owned()))
            }
        }
    }

    async fn talk(&self, to_host: &mut (impl AsyncWrite + Unpin), from: u64) -> Result<()> {
        let mut changed = self.kept.changed.subscribe();
        let (mut cursor, mut acknowledged) = (from, 0);
        loop {
            changed.borrow_and_update();
            let input = self.kept.input.load(Ordering::Relaxed);
            if input > acknowledged {
                acknowledged = input;
                frame::write(to_host, &Frame::Ack(input)).await?;
            }
            let (piece, exit) = {
                let spool = locked(&self.kept.spool);
                (spool.at(cursor), spool.exit.filter(|_| spool.is_at_end(cursor)))
            };
            match (piece, exit) {
                (Some(piece), _) => {
                    cursor += piece.output().len() as u64;
                    frame::write(to_host, &piece).await?;
                }
                (None, Some(exit)) => return frame::write(to_host, &Frame::Exit(exit)).await,
                (None, None) => drop(changed.changed().await),
            }
        }
    }

    async fn receive(&self, from_host: &mut (impl AsyncRead + Unpin)) -> Result<()> {
        loop {
            match frame::read(from_host).await? {
                None => return Ok(()),
                Some(Frame::Ack(offset)) => {
                    locked(&self.kept.spool).acknowledge(offset);
                    self.kept.bump();
                }
                Some(Frame::End) => self.kept.set_goal(Goal::End),
                // Frames for a program that has ended are dropped.
                Some(frame) => drop(self.kept.frames.send(frame)),
            }
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        locked(&self.kept.spool).detach();
        self.kept.bump();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::DuplexStream;
    use tokio::task::JoinHandle;

    /// A folder in which no file can be made: the spool is what fits into memory.
    const NOWHERE: &str = "/proc/no/such";

    fn asked(key: &str, script: &str) -> ExecRequest {
        let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
        let keep = Some(Keep { key: key.to_owned(), ..Keep::default() });
        ExecRequest { argv, cwd: Some("/tmp".to_owned()), keep, ..ExecRequest::default() }
    }

    /// Attaches a host, whose stream is returned.
    fn host(
        registry: &Arc<Registry>,
        request: ExecRequest,
    ) -> (DuplexStream, JoinHandle<Result<()>>) {
        let (host, mut guest) = tokio::io::duplex(1 << 16);
        let registry = registry.clone();
        let keep = request.keep.clone().expect("kept");
        (host, tokio::spawn(async move { registry.run(&mut guest, request, keep).await }))
    }

    /// Starts a program that prints more than is kept, and leaves it once that is full.
    async fn abandon(registry: &Arc<Registry>, request: ExecRequest) {
        let key = request.keep.clone().expect("kept").key;
        let (host, served) = host(registry, request);
        let full = || {
            let kept = registry.programs.lock().get(&key).cloned();
            kept.is_some_and(|kept| kept.spool.lock().waits)
        };
        while !full() {
            assert!(!served.is_finished(), "it is served");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        drop(host);
        // How its stream ends depends on what was under way.
        let _ = served.await.expect("the task");
        while registry.programs.lock()[&key].spool.lock().abandoned().is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Reads what a program printed, to its end.
    async fn read(registry: &Arc<Registry>, request: ExecRequest) -> (Vec<u8>, Exit) {
        let (mut stream, _served) = host(registry, request);
        let mut seen = Vec::new();
        let _: Reply = frame::reply(&mut stream).await.expect("a reply");
        loop {
            match frame::read(&mut stream).await.expect("a frame").expect("more") {
                Frame::Stdout(bytes) | Frame::Stderr(bytes) => seen.extend(bytes),
                Frame::Exit(exit) => return (seen, exit),
                other => panic!("{other:?}"),
            }
            let all = Frame::Ack(seen.len() as u64);
            frame::write(&mut stream, &all).await.expect("frames");
        }
    }

    /// Programs whose output nobody comes back to read do not keep others from being started: the
    /// one that was left first is ended. A program that a host is attached to is not.
    #[tokio::test]
    async fn the_place_of_an_abandoned_program_is_given_to_another() {
        let registry = Arc::new(Registry::with(3, Path::new(NOWHERE)));
        // More than is kept, and little enough that the pipe takes the rest.
        abandon(&registry, asked("ended", "seq 1 172000; exit 3")).await;
        abandon(&registry, asked("running", "exec yes")).await;
        let (_attached, _served) = host(&registry, asked("attached", "exec sleep 600"));
        while registry.running() < 3 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut stay = Vec::new();
        for key in ["one", "two"] {
            let (seen, exit) = read(&registry, asked(key, "echo up")).await;
            assert_eq!((&seen[..], exit.code), (&b"up\n"[..], Some(0)), "{key}");
            let more = format!("{key} more");
            stay.push(host(&registry, asked(&more, "exec sleep 600")));
            while !registry.programs.lock().contains_key(&more) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        let keep = Keep { key: "third".to_owned(), ..Keep::default() };
        let refused = registry.find(&asked("third", "true"), &keep).expect_err("all are wanted");
        assert_eq!(refused.code(), Code::Busy);
        // Their hosts come back after all, and learn that something is missing.
        let (seen, exit) = read(&registry, asked("ended", "echo twice")).await;
        assert!(seen.starts_with(b"1\n2\n") && seen.ends_with(LOST));
        assert_eq!(exit.code, Some(3));
        let (seen, exit) = read(&registry, asked("running", "echo twice")).await;
        assert!(seen.starts_with(b"y\ny\n") && seen.ends_with(LOST));
        assert!(exit.signal.is_some());
    }

    /// A program that is ended since nobody came back is over even if its output found no space.
    #[tokio::test]
    async fn an_abandoned_program_with_a_deadline_is_over() {
        let registry = Arc::new(Registry::with(3, Path::new(NOWHERE)));
        let mut request = asked("k", "exec yes");
        request.keep.as_mut().expect("kept").unattended_s = Some(1);
        abandon(&registry, request).await;
        while registry.running() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (seen, exit) = read(&registry, asked("k", "echo twice")).await;
        assert!(seen.ends_with(LOST) && exit.signal.is_some());
    }
}
