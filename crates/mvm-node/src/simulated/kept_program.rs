//! ProgramPosition programs of a simulated guest. Between any two of their commands they are in the guest's
//! memory, so they outlive the task that serves the guest's channel. A program runs only while a
//! client is attached to it.

use super::exec::not_found;
use super::files::{self, Memory, absolute};
use super::inside::{Inside, refusal};
use super::program::Program;
use super::script::{self, Action, Command};
use mvm_guest::Result;
use mvm_guest::channel::Stream;
use mvm_guest::frame::{self, Frame};
use mvm_guest::protocol::{ExecRequest, Exit, Keep, ProgramPosition};
use mvm_guest::serve::reply;
use mvm_model::Code;
use std::time::Duration;
use tokio::io::AsyncRead;

/// The next step of a program.
enum Next {
    /// Run the next command.
    Go,
    /// Wait for this long.
    Sleep(Duration),
    /// Do nothing: the program has ended.
    Over(Exit),
}

/// Starts the program, or attaches to the one with the same key, until it has ended or the host
/// disconnects.
pub async fn run(
    inside: &Inside,
    stream: &mut Stream,
    request: ExecRequest,
    keep: Keep,
) -> Result<()> {
    let commands = |argv: &[String]| script::parse(argv).map_err(|name| not_found(&name));
    let cwd = request.cwd.unwrap_or_else(|| "/".to_owned());
    let new = Program { argv: request.argv, cwd, ..Program::default() };
    let checked = commands(&new.argv).map(drop);
    let key = keep.key.clone();
    let found = files::change_all(&inside.machine, |memory| {
        if keep.life.is_some_and(|life| life != memory.life) {
            return Err(refusal(Code::GuestRestarted, "the guest was started anew".to_owned()));
        }
        if let Some(program) = memory.programs.get(&key) {
            return Ok(program.clone());
        }
        if keep.attach {
            return Err(refusal(Code::NotFound, format!("there is no program {key}")));
        }
        checked?;
        memory.programs.insert(key.clone(), new.clone());
        Ok(new)
    })??;
    let commands = commands(&found.argv)?;
    reply(stream, &ProgramPosition { from: keep.offset, input: 0 }).await?;
    let (mut from_host, mut to_host) = tokio::io::split(stream);
    let program = Attached { inside, key: &keep.key, commands: &commands };
    let hear = program.receive(&mut from_host);
    tokio::pin!(hear);
    let mut cursor = keep.offset;
    let exit = loop {
        let next = program.with_program(|program| program.next(commands.len(), inside))?;
        for piece in program.with_program(|program| program.behind(&mut cursor))? {
            frame::write(&mut to_host, &piece).await?;
        }
        let wait = match next {
            Next::Over(exit) => break exit,
            Next::Sleep(wait) => wait,
            Next::Go => {
                program.step()?;
                continue;
            }
        };
        tokio::select! {
            // A message may have changed the program, so look at it again.
            heard = &mut hear => return heard,
            () = program.sleep(wait) => {}
            () = inside.told.notified() => {}
        }
    };
    frame::write(&mut to_host, &Frame::Exit(exit)).await?;
    // The host must still acknowledge the last output.
    hear.await
}

struct Attached<'a> {
    inside: &'a Inside,
    key: &'a str,
    commands: &'a [Command],
}

impl Attached<'_> {
    fn with_program<T>(&self, change: impl FnOnce(&mut Program) -> T) -> Result<T> {
        files::change_all(&self.inside.machine, |memory| {
            change(memory.programs.entry(self.key.to_owned()).or_default())
        })
    }

    /// Waits for `wait`, which passes only while the vCPUs run.
    async fn sleep(&self, wait: Duration) {
        let mut running = self.inside.running.clone();
        if running.wait_for(|runs| *runs).await.is_ok() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Runs one command, and stores all its effects at once.
    fn step(&self) -> Result<()> {
        let uptime = self.inside.machine.uptime_ms();
        files::change_all(&self.inside.machine, |memory| {
            let Some(mut program) = memory.programs.remove(self.key) else { return };
            program.step(memory, self.commands, uptime);
            memory.programs.insert(self.key.to_owned(), program);
        })
    }

    async fn receive(&self, from: &mut (impl AsyncRead + Unpin)) -> Result<()> {
        loop {
            let exit = match frame::read(from).await? {
                None => return Ok(()),
                Some(Frame::Signal(signal)) => Exit { code: None, signal: Some(signal) },
                Some(Frame::End) => Exit { code: None, signal: Some(15) },
                Some(_) => continue,
            };
            self.with_program(|program| program.exit.get_or_insert(exit).to_owned())?;
            self.inside.told.notify_waiters();
        }
    }
}

impl Program {
    fn next(&mut self, commands: usize, inside: &Inside) -> Next {
        if let Some(until) = self.until_ms
            && self.exit.is_none()
        {
            let left = until.saturating_sub(inside.machine.uptime_ms());
            if left > 0 {
                return Next::Sleep(Duration::from_millis(left));
            }
            self.until_ms = None;
            self.done += 1;
        }
        if self.done >= commands {
            self.exit.get_or_insert(Exit { code: Some(self.status), signal: None });
        }
        self.exit.map_or(Next::Go, Next::Over)
    }

    /// Returns the output after the first `cursor` bytes, and advances `cursor`.
    fn behind(&self, cursor: &mut u64) -> Vec<Frame> {
        let (mut at, mut pieces) = (0, Vec::new());
        for (error, words) in &self.printed {
            let ends = at + words.len() as u64;
            if ends > *cursor {
                let wrap = if *error { Frame::Stderr } else { Frame::Stdout };
                let new = words.as_bytes()[(*cursor - at) as usize..].chunks(frame::MAX_PAYLOAD);
                pieces.extend(new.map(|piece| wrap(piece.to_vec())));
                *cursor = ends;
            }
            at = ends;
        }
        pieces
    }

    fn step(&mut self, memory: &mut Memory, commands: &[Command], uptime_ms: u64) {
        let Some(command) = commands.get(self.done) else { return };
        if !command.if_well || self.status == 0 {
            let mut printed = String::new();
            self.status = match &command.does {
                Action::Exit(status) => {
                    self.exit = Some(Exit { code: Some(*status), signal: None });
                    *status
                }
                Action::Be(status) => *status,
                Action::Echo(line) => {
                    printed = format!("{line}\n");
                    0
                }
                Action::Cat(names) => self.cat(memory, names, &mut printed),
                Action::Sleep(time) => {
                    self.until_ms = Some(uptime_ms.saturating_add(time.as_millis() as u64));
                    self.status = 0;
                    return;
                }
                Action::Complain(status, words) => {
                    self.printed.push((true, format!("{words}\n")));
                    *status
                }
            };
            match &command.into {
                Some(name) => {
                    let name = absolute(&self.cwd, name);
                    memory.files.write(&name, 0o644, printed.into_bytes());
                }
                None if printed.is_empty() => {}
                None => self.printed.push((false, printed)),
            }
        }
        self.done += 1;
    }

    /// Prints files. Standard input is empty.
    fn cat(&mut self, memory: &Memory, names: &[String], printed: &mut String) -> i32 {
        let mut status = 0;
        for name in names {
            match memory.files.read(&absolute(&self.cwd, name)) {
                Some(bytes) => printed.push_str(&String::from_utf8_lossy(&bytes)),
                None => {
                    let words = format!("cat: {name}: No such file or directory\n");
                    self.printed.push((true, words));
                    status = 1;
                }
            }
        }
        status
    }
}
