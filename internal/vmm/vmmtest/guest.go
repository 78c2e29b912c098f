package vmmtest

import "time"

// The commands that a test guest executes, and its answers, one line each, on its
// serial console:
//
//	(at each boot)     prints "guest ready BOOT", where each boot has another BOOT
//	echo WORDS         answers "echo: WORDS"
//	tick               prints "tick 1", "tick 2", … every tickEvery, without end
//	poweroff           powers off
//	reboot             reboots
//	panic              panics
//	deaf               ignores the power button from now on; answers "deaf: ok"
//	keep WORD MIB      fills MIB more MiB of its memory with data computed from WORD; "keep: ok"
//	kept               answers "kept:" and, for each keep, WORD if its data is intact, else "lost"
//
// A real guest also executes these:
//
//	write SERIAL WORD  writes WORD to the start of that disk; "write: ok", or "write: " and the error
//	read SERIAL N      answers "read: " and the first N bytes of that disk
//	disks              answers "disks: " and the serials of all disks, in the guest's order
//	mac                answers "mac: " and its network device's MAC
//	fill SERIAL MIB    writes exactly MIB MiB to that disk; "fill: ok"
//	burn MS            computes for MS milliseconds; "burn: ok"
//	netup              brings its network device up, so that it sends frames; "netup: ok"
//
// On the agent channel it answers each line with "agent: " and the same line.
const (
	greeting    = "guest ready "
	tickEvery   = 20 * time.Millisecond
	agentPrefix = "agent: "
)
