//! One thread, one loop, both ends: the load's connections and the model's. Nothing but Envoy stands between them, and no
//! context switch is paid twice.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use serde_json::Value;

use crate::client::{Client, Next};
use crate::guard::{Guard, Prefill};
use crate::load::{Outcome, Plan};
use crate::messages::Request;
use crate::model::{Answers, Due, Model};
use crate::wire::Wire;

const LISTENER: Token = Token(usize::MAX - 1);
const WAKER: Token = Token(usize::MAX - 2);

/// How long answers are awaited after a load's time is over.
const GRACE_US: u64 = 10_000_000;
const MAX_RECONNECTS: u64 = 10_000;

struct Connection {
    wire: Wire,
    serial: u64,
    role: Role,
}

enum Role {
    Model(Model),
    Client(Client),
}

/// Due when, for which connection (slot and serial: slots are used again), what.
type Timer = Reverse<(u64, usize, u64, Due)>;

struct Load {
    outcome: Outcome,
    request: Request,
    address: SocketAddr,
    begun_us: u64,
    until_us: u64,
    /// Connections that have not ended their work.
    active: usize,
}

pub(crate) struct Rig {
    poll: Poll,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    serial: u64,
    timers: BinaryHeap<Timer>,
    advance: Vec<usize>,
    scratch: Box<[u8]>,
    answers: Answers,
    guard: Guard,
    plan: Plan,
    load: Option<Load>,
    verdicts: u64,
    served: u64,
    second: u64,
    /// Where the next load's seeds go on: no request is ever sent twice.
    seed: u64,
    clock: Instant,
}

impl Rig {
    /// Listens on a free port of this machine's own interface.
    pub(crate) fn open() -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            connections: Vec::new(),
            free: Vec::new(),
            serial: 0,
            timers: BinaryHeap::new(),
            advance: Vec::new(),
            scratch: vec![0; 64 * 1024].into_boxed_slice(),
            answers: Answers::default(),
            guard: Guard::default(),
            plan: Plan::default(),
            load: None,
            verdicts: 0,
            served: 0,
            second: 0,
            seed: 0,
            clock: Instant::now(),
        })
    }

    pub(crate) fn port(&self) -> io::Result<u16> {
        self.listener.local_addr().map(|address| address.port())
    }

    /// Makes the loop return from its wait.
    pub(crate) fn waker(&self) -> io::Result<Waker> {
        Waker::new(self.poll.registry(), WAKER)
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(crate) const fn is_busy(&self) -> bool {
        self.load.is_some()
    }

    pub(crate) fn start(&mut self, plan: Plan) -> io::Result<()> {
        let port = if plan.port == 0 { self.port()? } else { plan.port };
        let now_us = self.now_us();
        (self.verdicts, self.served, self.second, self.guard.read) = (0, 0, 0, Prefill::default());
        let load = Load {
            outcome: Outcome::default(),
            request: Request::chat(&plan, self.seed),
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            begun_us: now_us,
            until_us: now_us.saturating_add((plan.seconds * 1e6) as u64),
            active: plan.connections,
        };
        let address = load.address;
        let connections = plan.connections;
        self.plan = plan;
        self.load = Some(load);
        let mut tokens = Vec::new();
        for _ in 0..connections {
            tokens.push(self.connect(address)?);
            // Its own listener's queue is short.
            self.accept();
        }
        // Connecting is no part of what is measured.
        let now_us = self.now_us();
        if let Some(load) = &mut self.load {
            load.begun_us = now_us;
            load.until_us = now_us.saturating_add((self.plan.seconds * 1e6) as u64);
        }
        let mut first_us = now_us;
        for token in tokens {
            if first_us == now_us {
                self.send(token);
            } else if let Some(connection) = self.connections.get(token).and_then(Option::as_ref) {
                self.timers.push(Reverse((first_us, token, connection.serial, Due::Request)));
            }
            first_us = first_us.saturating_add(self.plan.stagger_us);
        }
        Ok(())
    }

    fn connect(&mut self, address: SocketAddr) -> io::Result<usize> {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nonblocking(true)?;
        self.add(TcpStream::from_std(stream), Role::Client(Client::new()))
    }

    fn add(&mut self, stream: TcpStream, role: Role) -> io::Result<usize> {
        let token = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len().saturating_sub(1)
        });
        let mut wire = Wire::new(stream);
        let interest = Interest::READABLE.add(Interest::WRITABLE);
        self.poll.registry().register(&mut wire.stream, Token(token), interest)?;
        self.serial = self.serial.wrapping_add(1);
        if let Some(slot) = self.connections.get_mut(token) {
            *slot = Some(Connection { wire, serial: self.serial, role });
        }
        Ok(token)
    }

    fn take(&mut self, token: usize) -> Option<Connection> {
        self.connections.get_mut(token)?.take()
    }

    fn put(&mut self, token: usize, connection: Connection) {
        if let Some(slot) = self.connections.get_mut(token) {
            *slot = Some(connection);
        }
    }

    /// Sends a client's next request, or ends its work.
    fn send(&mut self, token: usize) {
        let now_us = self.now_us();
        let Some(mut connection) = self.take(token) else { return };
        let (Role::Client(client), Some(load)) = (&mut connection.role, &mut self.load) else {
            return self.put(token, connection);
        };
        client.sent(now_us);
        if connection.wire.write(load.request.next()).is_err() {
            return self.lose(token, connection);
        }
        self.put(token, connection);
    }

    /// A connection is over.
    fn lose(&mut self, token: usize, connection: Connection) {
        let now_us = self.now_us();
        let Connection { wire, role, .. } = connection;
        drop(wire);
        self.free.push(token);
        let Some(load) = &mut self.load else { return };
        let mut client = match role {
            Role::Client(client) if !client.is_idle() => client,
            Role::Client(_) => return,
            Role::Model(model) => {
                if model.is_streaming() {
                    load.outcome.closed(token, now_us);
                }
                return;
            }
        };
        let refused = client.is_refused();
        if refused {
            client.answered(now_us, &self.plan, &mut load.outcome);
        } else {
            load.outcome.failed += 1;
        }
        load.outcome.reconnects += 1;
        let sends_more = now_us < load.until_us && !(refused && self.plan.once);
        let goes_on = sends_more && load.outcome.reconnects < MAX_RECONNECTS;
        let address = load.address;
        match goes_on.then(|| self.connect(address)) {
            Some(Ok(token)) => self.send(token),
            _ => {
                if let Some(load) = &mut self.load {
                    load.active = load.active.saturating_sub(1);
                }
            }
        }
    }

    /// One round of the loop; a load's report when it is over.
    pub(crate) fn turn(&mut self, events: &mut Events) -> io::Result<Option<Value>> {
        let now_us = self.now_us();
        let wait_us = self.timers.peek().map_or(100_000, |Reverse((due, ..))| due.saturating_sub(now_us).min(100_000));
        // The kernel's wait is in whole milliseconds, rounded up: what that would be late is spent here.
        let exact = self.plan.precise && self.load.is_some();
        let wait_us = if exact { wait_us.saturating_sub(1_000) } else { wait_us };
        match self.poll.poll(events, Some(Duration::from_micros(wait_us))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => other?,
        }
        for event in events.iter() {
            match event.token() {
                LISTENER => self.accept(),
                WAKER => {}
                Token(token) => {
                    self.on_event(token, event.is_readable() || event.is_read_closed(), event.is_writable())
                }
            }
        }
        for token in core::mem::take(&mut self.advance) {
            self.act(token, Due::Token, self.now_us());
        }
        self.run_timers();
        Ok(self.end_of_load())
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let _ = self.add(stream, Role::Model(Model::default()));
        }
    }

    fn on_event(&mut self, token: usize, readable: bool, writable: bool) {
        let Some(mut connection) = self.take(token) else { return };
        let flushed = if writable { connection.wire.flush() } else { Ok(()) };
        let read = if readable { connection.wire.read(&mut self.scratch) } else { Ok(()) };
        let now_us = self.now_us();
        let mut answered = false;
        let (mut due, mut second) = (None, false);
        match &mut connection.role {
            Role::Client(client) => {
                if let Some(load) = self.load.as_mut().filter(|_| readable && !client.is_idle()) {
                    let (plan, outcome) = (&self.plan, &mut load.outcome);
                    let next = client.read(&mut connection.wire, now_us, plan, outcome, &mut self.advance);
                    answered = next == Next::Answered;
                    if answered && (plan.once || now_us >= load.until_us) {
                        load.active = load.active.saturating_sub(1);
                        answered = false;
                    }
                }
            }
            Role::Model(model) if readable => {
                second = self.plan.slow.is_some() && names_second(&connection.wire.unread);
                due = Model::read(&mut connection.wire, Some(&mut self.guard).filter(|_| self.plan.reads));
                if due == Some(Due::Answer) {
                    model.offends_at(self.plan.offence(self.served));
                }
            }
            Role::Model(_) => {}
        }
        if flushed.is_err() || read.is_err() {
            return self.lose(token, connection);
        }
        let serial = connection.serial;
        self.put(token, connection);
        if answered {
            self.send(token);
        }
        if let Some(due) = due {
            let judges = matches!(due, Due::Verdict(_));
            let delay_us = if judges { self.plan.guard_us } else { self.plan.model_us(self.served, second) };
            self.verdicts += u64::from(judges);
            self.served += u64::from(due == Due::Answer);
            self.second += u64::from(second && due == Due::Answer);
            if delay_us == 0 {
                self.act(token, due, now_us);
            } else {
                self.timers.push(Reverse((now_us.saturating_add(delay_us), token, serial, due)));
            }
        }
    }

    /// Does what was due at `due_us` for a connection of the model's.
    fn act(&mut self, token: usize, due: Due, due_us: u64) {
        if due == Due::Request {
            return self.send(token);
        }
        let now_us = self.now_us();
        let Some(mut connection) = self.take(token) else { return };
        let Role::Model(model) = &mut connection.role else { return self.put(token, connection) };
        if let (Due::Verdict(said), Some(load)) = (due, &mut self.load) {
            load.outcome.judge(said, now_us);
        }
        match model.act(due, &mut connection.wire, token, now_us, &self.plan, &self.answers) {
            Ok(after) => {
                if let Some((after_us, due)) = after {
                    self.timers.push(Reverse((due_us.saturating_add(after_us), token, connection.serial, due)));
                }
                self.put(token, connection);
            }
            Err(_) => self.lose(token, connection),
        }
    }

    fn run_timers(&mut self) {
        let now_us = self.now_us();
        // Bounded: what is due again at once waits for the next turn, so that sockets are read in between.
        for _ in 0..self.timers.len() {
            let Some(Reverse((due_us, token, serial, due))) = self.timers.peek().copied() else { return };
            if due_us > now_us {
                return;
            }
            self.timers.pop();
            let same = self.connections.get(token).and_then(Option::as_ref).is_some_and(|known| known.serial == serial);
            if same {
                self.act(token, due, due_us);
            }
        }
    }

    fn end_of_load(&mut self) -> Option<Value> {
        let now_us = self.now_us();
        let load = self.load.as_ref()?;
        let patience_us = load.until_us.saturating_add(GRACE_US);
        if load.active > 0 && now_us < patience_us {
            return None;
        }
        let mut load = self.load.take()?;
        self.seed = load.request.seed();
        load.outcome.failed += load.active as u64;
        (load.outcome.verdicts, load.outcome.served) = (self.verdicts, self.served);
        load.outcome.second = self.second;
        load.outcome.prefill = core::mem::take(&mut self.guard.read);
        for token in 0..self.connections.len() {
            let is_client = matches!(
                self.connections.get(token).and_then(Option::as_ref),
                Some(Connection { role: Role::Client(_), .. })
            );
            if is_client && self.take(token).is_some() {
                self.free.push(token);
            }
        }
        Some(load.outcome.report(now_us.saturating_sub(load.begun_us)))
    }
}

/// The request is for the model of the shipped configuration's second provider.
fn names_second(request: &[u8]) -> bool {
    const NAME: &[u8] = b"\"gpt-4o-mini\"";
    request.windows(NAME.len()).any(|window| window == NAME)
}
