//! A transport whose key can be changed while connections live: the present one, and the past one until it is ended.
//!
//! The swarm sees one transport with the same listeners all the time. TCP is taken over at once: both keys listen on the port
//! for a moment. A QUIC endpoint takes its connections with it when it stops listening, so the past one goes on listening until
//! it is ended, and the present one takes the port when it is free.
//!
//! Invariant: what is dialled uses the present key; at most one past transport is kept.

use crate::address::{Target, Via};
use libp2p::{
    Multiaddr, PeerId, TransportError,
    core::{
        Transport,
        muxing::StreamMuxerBox,
        transport::{Boxed, DialOpts, ListenerId, TransportEvent},
    },
};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::{Interval, MissedTickBehavior, interval};

type Inner = Boxed<(PeerId, StreamMuxerBox)>;
type Dial = <Inner as Transport>::Dial;
type Upgrade = <Inner as Transport>::ListenerUpgrade;

/// How often a port that is still taken is tried again.
const RETRY: Duration = Duration::from_millis(500);

enum Order {
    Change(Inner),
    EndPast,
}

#[derive(Default)]
struct Shared {
    orders: VecDeque<Order>,
    waker: Option<Waker>,
}

/// Changes the transport. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Lever(Arc<Mutex<Shared>>);

impl Lever {
    pub(crate) fn change(&self, to: Inner) {
        self.give(Order::Change(to));
    }

    pub(crate) fn end_past(&self) {
        self.give(Order::EndPast);
    }

    fn give(&self, order: Order) {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.orders.push_back(order);
        if let Some(waker) = shared.waker.take() {
            waker.wake();
        }
    }

    fn take(&self, cx: &Context<'_>) -> Option<Order> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let order = shared.orders.pop_front();
        if order.is_none() {
            shared.waker = Some(cx.waker().clone());
        }
        order
    }
}

/// The transport.
pub(crate) struct Switch {
    present: Inner,
    past: Option<Inner>,
    lever: Lever,
    listeners: HashMap<ListenerId, Multiaddr>,
    /// Listeners that the present transport could not take over yet.
    waiting: HashSet<ListenerId>,
    retry: Interval,
}

impl Switch {
    /// Must be called in a tokio runtime.
    pub(crate) fn new(present: Inner, lever: Lever) -> Self {
        let mut retry = interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            present,
            past: None,
            lever,
            listeners: HashMap::new(),
            waiting: HashSet::new(),
            retry,
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Change(to) => {
                let mut past = std::mem::replace(&mut self.present, to);
                for (id, address) in &self.listeners {
                    let is_tcp = Target::from_multiaddr(address).is_some_and(|target| target.via == Via::Tcp);
                    if is_tcp {
                        past.remove_listener(*id);
                    }
                    self.waiting.insert(*id);
                }
                self.past = Some(past);
                self.take_over();
            }
            Order::EndPast => self.past = None,
        }
    }

    /// Lets the present transport listen where it does not yet. A port that is taken is tried again.
    fn take_over(&mut self) {
        let Self {
            present,
            past,
            listeners,
            waiting,
            ..
        } = self;
        waiting.retain(|id| {
            let Some(address) = listeners.get(id) else {
                return false;
            };
            let is_quic = Target::from_multiaddr(address).is_none_or(|target| target.via != Via::Tcp);
            if is_quic && past.is_some() {
                return true;
            }
            match present.listen_on(*id, address.clone()) {
                Ok(()) => false,
                Err(error) => {
                    tracing::debug!(%address, %error, "the port is not free yet for the new key");
                    true
                }
            }
        });
    }
}

impl Transport for Switch {
    type Output = (PeerId, StreamMuxerBox);
    type Error = io::Error;
    type ListenerUpgrade = Upgrade;
    type Dial = Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.present.listen_on(id, address.clone())?;
        self.listeners.insert(id, address);
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.listeners.remove(&id);
        self.waiting.remove(&id);
        let past = self.past.as_mut().is_some_and(|past| past.remove_listener(id));
        self.present.remove_listener(id) || past
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Dial, TransportError<io::Error>> {
        self.present.dial(address, options)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Upgrade, io::Error>> {
        let this = &mut *self;
        while let Some(order) = this.lever.clone().take(cx) {
            this.obey(order);
        }
        if !this.waiting.is_empty() {
            while this.retry.poll_tick(cx).is_ready() {
                this.take_over();
            }
        }
        if let Poll::Ready(event) = Pin::new(&mut this.present).poll(cx) {
            return Poll::Ready(event);
        }
        while let Some(past) = &mut this.past {
            match Pin::new(past).poll(cx) {
                // Somebody who reached the old key's listener.
                Poll::Ready(event @ TransportEvent::Incoming { .. }) => return Poll::Ready(event),
                // The swarm goes on listening: the present transport tells it where.
                Poll::Ready(_) => {}
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }
}
