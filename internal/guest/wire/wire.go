// Package wire is the protocol between hatchd and hatch-agent, over any byte
// stream: a virtio-serial port, a vsock connection, a pipe in a test.
//
// Each connection begins with a handshake of four lines, because a
// virtio-serial port has no connections of its own and may still hold bytes of
// an earlier one. A yamux session follows, in which hatchd alone opens streams;
// each stream is one request: a JSON header, then its replies.
//
// The two ends do not trust each other's sizes: every message has a limit, and
// a guest can neither open streams nor make hatchd queue work without end.
// Start at [Connect] (hatchd) and [Accept] (agent); messages are in message.go.
package wire

import "time"

// Version is the highest version of the protocol that this code speaks. A
// session runs with the lower of both ends' versions; version 1 is never
// dropped, because an agent may sleep in a snapshot for years.
const Version = 1

// Limits of one session.
const (
	maxMessage  = 64 << 10 // bytes of a JSON message
	maxRequest  = 1 << 20  // bytes of a request, which an agent reads
	maxStreams  = 256      // requests that the agent serves at once
	maxRequests = 224      // of hatchd at once: the agent may be behind in ending some
	maxLasting  = 192      // of those, for requests that may last
	maxListing  = 8        // and for lists of processes: a hostile one takes some 40 MiB here
)

// hostPing and its timeout bound how long hatchd takes to notice that a guest
// was reset under an open connection: below 10 s, yet long enough for an
// emulated guest on a busy host.
const (
	hostPing    = 3 * time.Second
	hostTimeout = 6 * time.Second
)

// agentPing frees an agent whose host went away unseen. It is slow: each ping
// wakes an idle guest.
const (
	agentPing    = 20 * time.Second
	agentTimeout = 10 * time.Second
)

// times bounds the waits of one request. Tests have less patience.
type times struct {
	// patience of hatchd, on a stream that stays open: with the first answer,
	// and between words of an agent that should say some.
	patience time.Duration

	// stall is how long an attached reader may take nothing before it is let
	// go, so that the process need not wait for it any longer.
	stall time.Duration

	// beat spaces the agent's words that it is at work on files, and those to a
	// host whose stdin a process does not read. That a host has left shows only
	// when it is written to: its last words stand behind the stdin.
	beat time.Duration
}

var usualTimes = times{patience: 15 * time.Second, stall: 30 * time.Second, beat: 5 * time.Second}
