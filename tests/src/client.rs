//! A client that speaks raw frames over a blocking socket.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use protocol::codes::response;
use protocol::{Command, Frames, Serialize};

use crate::PATIENCE;

/// One connection.
#[derive(Debug)]
pub struct Client {
    /// The socket, for what is no frame.
    pub stream: TcpStream,
    /// How requests are written.
    pub serialize: Serialize,
    frames: Frames,
    opaque: i32,
    /// Read while something else was waited for.
    kept: VecDeque<Command>,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects.
    pub fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream.set_write_timeout(Some(PATIENCE)).expect("a time-out");
        stream.set_nodelay(true).expect("no delay");
        let serialize = Serialize::Json;
        Client {
            stream,
            serialize,
            frames: Frames::default(),
            opaque: 0,
            kept: VecDeque::new(),
            buffer: vec![0; 65536],
        }
    }

    /// Writes requests in this form from now on.
    pub fn speaking(mut self, serialize: Serialize) -> Client {
        self.serialize = serialize;
        self
    }

    /// Sends a request and returns its number. `Err`: the connection is gone.
    pub fn try_write(&mut self, mut command: Command) -> io::Result<i32> {
        self.opaque += 1;
        command.header.opaque = self.opaque;
        command.header.serialize = self.serialize;
        self.stream.write_all(&command.encode())?;
        Ok(self.opaque)
    }

    /// The next frame in the order they come. `None`: the server has closed.
    pub fn try_read(&mut self) -> io::Result<Option<Command>> {
        loop {
            if let Some(frame) = self.frames.cut().expect("the server writes frames") {
                return Ok(Some(Command::decode(frame).expect("the server writes commands")));
            }
            match self.stream.read(&mut self.buffer) {
                Ok(0) => return Ok(None),
                Ok(count) => self.frames.feed(&self.buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    return Ok(None);
                }
                // This process was stopped, and goes on.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a request and returns its number.
    pub fn write(&mut self, command: Command) -> i32 {
        self.try_write(command).expect("the server takes requests")
    }

    /// The next frame, those kept first.
    pub fn read(&mut self) -> Command {
        self.kept.pop_front().or_else(|| self.try_read().expect("a frame in time")).expect("the connection is open")
    }

    /// The answer to one request; whatever comes before it is kept.
    pub fn answer(&mut self, opaque: i32) -> Command {
        self.find(|command| command.header.is_response() && command.header.opaque == opaque)
    }

    /// The next request that the server sends with this code; whatever comes before it is kept.
    pub fn push(&mut self, code: i32) -> Command {
        self.find(|command| !command.header.is_response() && command.header.code == code)
    }

    fn find(&mut self, is_it: impl Fn(&Command) -> bool) -> Command {
        if let Some(index) = self.kept.iter().position(&is_it) {
            return self.kept.remove(index).expect("it was found there");
        }
        loop {
            let command = self.try_read().expect("a frame in time").expect("the connection is open");
            if is_it(&command) {
                return command;
            }
            self.kept.push_back(command);
        }
    }

    /// Sends a request and waits for its answer, which must be in the request's form.
    pub fn ask(&mut self, command: Command) -> Command {
        let opaque = self.write(command);
        let answer = self.answer(opaque);
        assert_eq!(answer.header.serialize, self.serialize, "answered in kind: {answer:?}");
        answer
    }

    /// As `ask`; the answer must have this code.
    pub fn expect(&mut self, code: i32, command: Command) -> Command {
        let asked = command.clone();
        let answer = self.ask(command);
        assert_eq!(answer.header.code, code, "{asked:?} was answered {answer:?}");
        answer
    }

    /// Sends all these requests, then waits for their answers, in their order: one write to the disk may serve many.
    pub fn ask_all(&mut self, commands: impl IntoIterator<Item = Command>) -> Vec<Command> {
        let asked: Vec<i32> = commands.into_iter().map(|command| self.write(command)).collect();
        asked.into_iter().map(|opaque| self.answer(opaque)).collect()
    }

    /// As `ask`; what a log refuses because it waits for its next segment is sent again.
    pub fn ask_again(&mut self, command: Command) -> Command {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(command.clone());
            if answer.header.code != response::SYSTEM_BUSY || Instant::now() >= give_up {
                return answer;
            }
        }
    }

    /// As `ask_again`; it must succeed.
    pub fn insist(&mut self, command: Command) -> Command {
        let answer = self.ask_again(command);
        assert_eq!(answer.header.code, response::SUCCESS, "{answer:?}");
        answer
    }

    /// Waits until the server closes; what it says before is dropped.
    pub fn expect_close(&mut self) {
        while self.try_read().expect("it closes in time").is_some() {}
    }
}
