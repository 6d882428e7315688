//! Sessions with a guest: programs, files and ports, over a stream through the agent.

mod key;
mod program;
mod stream;
mod terminal;

pub use key::draw_key;
pub use program::exec;
pub use terminal::{Run, print, terminal};

use crate::error::CliError;
use crate::output;
use crate::progress::Progress;
use mvm_api::types::InstanceView;
use mvm_api::{Client, paths};
use mvm_archive::{Notes, Packer, Refusal, Rules, Trust, name_of};
use mvm_guest::frame;
use mvm_guest::patience::{COPY, Patient, answer};
use mvm_guest::protocol::Request;
use mvm_guest::transfer;
use mvm_model::{Code, InstanceRef, State};
use std::path::Path;
use stream::{guest_problem, open};
use terminal::write;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Copies, and repeats the copy where the connection breaks, for as long as the client's patience
/// allows. A repeated copy overwrites what the first one left.
pub async fn copied(
    client: &Client,
    mut copy: impl AsyncFnMut() -> Result<(), CliError>,
) -> Result<(), CliError> {
    let mut waiting = client.waiting();
    loop {
        let problem = match copy().await {
            Err(problem) => problem,
            done => return done,
        };
        let code = match program::is_broken(&problem) {
            true => Some(Code::SessionLost),
            false => problem.code(),
        };
        if !waiting.after(code, &problem, true).await {
            return Err(problem);
        }
    }
}

/// Copies a local file or folder to below `target` in the guest.
pub async fn put(
    client: &Client,
    instance: &InstanceRef,
    source: &Path,
    target: &str,
) -> Result<(), CliError> {
    let source = source
        .canonicalize()
        .map_err(|e| CliError::file(format!("cannot read {}: {e}", source.display())))?;
    let mut stream = Patient::new(open(client, instance, None).await?, COPY);
    let progress = Progress::of(&source.display().to_string());
    let tally = progress.tally.clone();
    let pack = move |to: &mut dyn std::io::Write| {
        let mut packer = Packer::counted(to, tally);
        packer.add(&source, &name_of(&source))?;
        Ok(packer.finish()?.1)
    };
    let notes = transfer::put_packed(&mut stream, target, pack).await;
    drop(progress);
    tell(&notes.map_err(copy_problem)?);
    Ok(())
}

/// Copies a file or folder of the guest to below the local folder `target`, as far as `rules` allow.
pub async fn get(
    client: &Client,
    instance: &InstanceRef,
    source: &str,
    target: &Path,
    rules: Rules,
) -> Result<(), CliError> {
    let folder = target.to_owned();
    std::fs::create_dir_all(&folder)
        .map_err(|e| CliError::file(format!("cannot write below {}: {e}", target.display())))?;
    let mut stream = Patient::new(open(client, instance, None).await?, COPY);
    let trust = Trust::Stranger(rules);
    let progress = Progress::of(source);
    let tally = progress.tally.clone();
    let unpack = move |from: &mut dyn std::io::Read| {
        mvm_archive::unpack_counted(from, &folder, trust, tally)
    };
    let notes = transfer::get_unpacked(&mut stream, source, unpack).await;
    drop(progress);
    tell(&notes.map_err(copy_problem)?);
    Ok(())
}

/// Reports on standard error what could not be copied unchanged.
pub fn tell(notes: &Notes) {
    for line in notes.lines() {
        output::note(format_args!("mvm: {line}"));
    }
}

/// Returns why a guest's archive was refused, if that is why unpacking it ended.
pub fn refused(error: &std::io::Error) -> Option<CliError> {
    let refusal = Refusal::of(error)?;
    let hint = match refusal {
        Refusal::TooMany(_) => "what was copied so far stays; take more with --max-files",
        Refusal::TooLarge(_) => "what was copied so far stays; take more with --max-size",
        Refusal::Link(_) => "leave such links out with --links skip",
    };
    let what = format!("the guest's files are not taken further: {refusal}");
    Some(CliError::new(refusal.code(), what).hint(hint))
}

/// Turns the error of a copy into a command's error. An error of the packer is about a local file,
/// which its message names.
fn copy_problem(error: mvm_guest::Error) -> CliError {
    match error {
        mvm_guest::Error::Archive { doing, cause } => refused(&cause)
            .unwrap_or_else(|| CliError::file(format!("cannot {doing} the files here: {cause}"))),
        other => guest_problem(other),
    }
}

/// Copies between our standard streams and a port of the guest, as an SSH ProxyCommand.
pub async fn proxy(
    client: &Client,
    instance: &InstanceRef,
    port: u16,
    lease_s: Option<u64>,
) -> Result<u8, CliError> {
    let mut stream = open(client, instance, lease_s).await?;
    answer(frame::ask::<()>(&mut stream, Request::Connect { port }))
        .await
        .map_err(guest_problem)?;
    let (mut from, mut to) = tokio::io::split(stream);
    let upload = async {
        let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut to).await;
        let _ = to.shutdown().await;
        std::future::pending::<()>().await;
    };
    let download = async {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            write(tokio::io::stdout(), &buffer[..count]).await?;
        }
        Ok(())
    };
    tokio::select! {
        () = upload => {}
        downloaded = download => output::written(downloaded)?,
    }
    // A raw stream has no room for a reason. Where the machine was ended, its record has the
    // reason.
    let view = client.get::<InstanceView>(&paths::instance(instance)).await.ok();
    match view.filter(|view| view.state == State::Failed).and_then(|view| view.reason) {
        Some(reason) => Err(CliError::new(Code::SessionLost, format!("{instance}: {reason}"))),
        None => Ok(0),
    }
}
