// Package wire is the protocol between hatchd and hatch-agent, over any byte
// stream: a virtio-serial port, a vsock connection, a pipe in a test.
//
// Each connection begins with a handshake of four lines, because a virtio-serial port has
// no connections and may still deliver bytes of an earlier session. A yamux session
// follows, in which only hatchd opens streams; each stream is one request: a JSON header,
// then its replies.
//
// Neither end trusts the other's sizes: every message has a limit, and a guest can neither
// open streams nor make hatchd queue unlimited work. internal/agent serves the requests in
// the guest. Start at [Connect] (hatchd) and [Accept] (agent); messages are in message.go.
package wire

import "time"

// Version is the highest version of the protocol that this code speaks. A
// session uses the lower of both ends' versions. Version 1 is never dropped: a snapshot
// may have an agent that is years old.
const Version = 1

// Limits of one session.
const (
	maxMessage  = 64 << 10 // bytes of a JSON message
	maxRequest  = 1 << 20  // bytes of a request, which only an agent reads
	maxStreams  = 256      // concurrent requests that the agent serves
	maxRequests = 224      // concurrent requests of hatchd; fewer, because the agent may end some late
	maxLong     = 192      // requests of hatchd that may stay open for long
	maxLists    = 8        // lists of processes: a hostile one needs some 40 MiB in hatchd
)

// hostPing and hostTimeout limit the time until hatchd notices that a guest was reset
// under an open connection: below 10 s, but long enough for an emulated guest on a busy
// host.
const (
	hostPing    = 3 * time.Second
	hostTimeout = 6 * time.Second
)

// agentPing is the interval at which an agent checks that hatchd is still connected. It
// is long: each ping uses CPU time of an idle guest.
const (
	agentPing    = 20 * time.Second
	agentTimeout = 10 * time.Second
)

// times are the timeouts and the interval of one request. Tests have shorter ones.
type times struct {
	// answer is how long hatchd waits for the first answer on a stream that stays open,
	// and for the next frame that the agent has to send.
	answer time.Duration

	// stall is how long an attached reader may read nothing before the agent detaches
	// it, so that the process no longer waits for it.
	stall time.Duration

	// busy is the interval of the frames with which the agent reports that it is still
	// working on files, or that a process does not read its stdin. Only such a write
	// shows the agent that hatchd has closed the stream: the end of hatchd's direction
	// queues behind the stdin that it sent.
	busy time.Duration
}

var defaultTimes = times{answer: 15 * time.Second, stall: 30 * time.Second, busy: 5 * time.Second}
