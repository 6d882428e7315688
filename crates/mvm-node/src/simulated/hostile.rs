//! Guests that misbehave, for tests.

use super::inside::Inside;
use super::{Silence, pass_through};
use mvm_guest::Result;
use mvm_guest::channel::Stream;
use mvm_guest::frame::{self, Frame};
use mvm_guest::protocol::Request;
use mvm_guest::serve::{Answer, reply};
use mvm_hypervisor::sim::{Guest, GuestChannel};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The request at which a guest misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Mount,
    Put,
    /// The command is never started.
    Start,
    /// The command never ends, whatever signals it gets.
    Run,
    Get,
    Unmount,
}

/// How a guest misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// It does nothing.
    Stalls,
    /// It sends, or reads, a little now and then, forever.
    Trickles,
    /// It sends as much as it can, forever, if the requested path contains [`ENDLESS`].
    Floods,
}

/// The part of a path for which a flooding guest sends data forever.
pub const ENDLESS: &str = "endless";

/// A guest that behaves well except at one request.
#[derive(Clone, Debug)]
pub struct Hostile {
    pub at: Phase,
    pub how: Misbehaviour,
    /// Whether that request has come.
    pub asked: watch::Sender<bool>,
}

#[async_trait::async_trait]
impl Guest for Hostile {
    async fn serve(&self, channel: GuestChannel) {
        let host = |inside| Arc::new(Host { inside, hostile: self.clone() });
        pass_through(channel, Silence::default(), host).await;
    }
}

struct Host {
    inside: Inside,
    hostile: Hostile,
}

impl Answer for Host {
    async fn answer(&self, request: Request, stream: &mut Stream) -> Result<()> {
        let at = match &request {
            Request::Mount { .. } => Some(Phase::Mount),
            Request::Put { .. } => Some(Phase::Put),
            Request::Exec(_) if self.hostile.at == Phase::Run => Some(Phase::Run),
            Request::Exec(_) => Some(Phase::Start),
            Request::Get { .. } => Some(Phase::Get),
            Request::Unmount { .. } => Some(Phase::Unmount),
            _ => None,
        };
        let floods = self.hostile.how == Misbehaviour::Floods;
        let ends = matches!(&request, Request::Get { path, .. } if !path.contains(ENDLESS));
        if at != Some(self.hostile.at) || (floods && ends) {
            return self.inside.answer(request, stream).await;
        }
        self.hostile.asked.send_replace(true);
        if self.hostile.how == Misbehaviour::Stalls {
            return std::future::pending().await;
        }
        let piece = match self.hostile.at {
            Phase::Run => Frame::Stdout(b".".to_vec()),
            Phase::Get if self.hostile.how == Misbehaviour::Floods => {
                Frame::Data(vec![0; 64 * 1024])
            }
            Phase::Get => Frame::Data(vec![0]),
            // A reply has no pieces to send slowly, so the guest reads its input slowly instead.
            _ => return self.read_slowly(stream).await,
        };
        reply(stream, &()).await?;
        loop {
            frame::write(stream, &piece).await?;
            if self.hostile.how == Misbehaviour::Floods {
                continue;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Host {
    async fn read_slowly(&self, stream: &mut Stream) -> Result<()> {
        if self.hostile.at == Phase::Put {
            reply(stream, &()).await?;
        }
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if self.hostile.at == Phase::Put && frame::read(stream).await?.is_none() {
                return Ok(());
            }
        }
    }
}
