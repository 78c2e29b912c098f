// Package logkey holds the keys of hatchd's structured log, so that one thing
// has one key in every line and a search for it finds all of them.
//
// It is for slog attributes only: field names of the API are in package api,
// and data of events in the packages that make the events. A key that only
// one line uses may be a literal there.
package logkey

// The keys, by what their value is.
const (
	Error     = "err"        // an error
	Reason    = "why"        // a reason, as text
	VM        = "vm"         // a VM's id
	Snapshot  = "snapshot"   // a snapshot's id
	Image     = "image"      // an image's id
	User      = "user"       // a user's id
	Delivery  = "delivery"   // a webhook delivery's id
	RequestID = "request_id" // of a request to the API
	Driver    = "driver"     // a driver's name
	VMM       = "vmm"        // the name of the driver that hatchd uses by default
	Version   = "version"    // of a program
	Step      = "step"       // the name of a transition's step
	Took      = "took"       // a time.Duration
	RetryIn   = "retry_in"   // a time.Duration until the next attempt
	PID       = "pid"        // of a process on the host
	Bytes     = "bytes"      // a size
	File      = "file"       // a path on the host
	Client    = "client"     // the address of a client
	Hostname  = "hostname"   // of a guest
	MAC       = "mac"        // of a guest
	Domain    = "domain"     // a DNS domain
	Network   = "network"    // the prefix of a network
	Addr      = "addr"       // that something listens on
	Group     = "group"      // of users of the host
	Found     = "found"      // what differs from what must be
)
