//go:build linux

package jail

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what a process has used so far.
type Usage struct {
	StartedAt time.Time     // to the second
	CPU       time.Duration // user and system time of all its threads, ended ones too
	Resident  int64         // bytes of memory that it holds, shared ones included
}

// Usage reads what the process has used. Errors: ErrGone.
func (p *Proc) Usage() (Usage, error) {
	cpu, err := cpuTime(p.identity.PID)
	if err != nil {
		return Usage{}, fmt.Errorf("%w: %w", ErrGone, err)
	}
	resident, err := residentPages(p.identity.PID)
	if err != nil {
		return Usage{}, fmt.Errorf("%w: %w", ErrGone, err)
	}
	raw, err := os.ReadFile(procPath(p.identity.PID, "stat"))
	if err != nil {
		return Usage{}, fmt.Errorf("%w: %w", ErrGone, err)
	}
	st, err := parseStat(raw)
	if err != nil {
		return Usage{}, err
	}
	// That it is the same process now, it was before too: a pid's next process
	// starts later.
	if st.start != p.identity.StartTime || st.state == 'Z' || st.state == 'X' {
		return Usage{}, ErrGone
	}
	started, err := startedAt(st.start)
	return Usage{StartedAt: started, CPU: cpu, Resident: resident * int64(os.Getpagesize())}, err
}

// cpuTime reads the process's own CPU clock, which knows nanoseconds where
// /proc knows hundredths of a second.
func cpuTime(pid int) (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED: what the scheduler has measured, of a whole process
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|scheduled, &ts); err != nil {
		return 0, err
	}
	return time.Duration(ts.Nano()), nil
}

// residentPages reads /proc/PID/statm, which recent kernels keep exact; the same
// field of stat lags behind.
func residentPages(pid int) (int64, error) {
	raw, err := os.ReadFile(procPath(pid, "statm"))
	if err != nil {
		return 0, err
	}
	var size, resident int64
	_, err = fmt.Sscan(string(raw), &size, &resident)
	return resident, err
}

// ticks per second in /proc, on every architecture that we run on.
const ticks = 100

// startedAt turns ticks since the host's boot into a time. It reads no clock but
// the kernel's own word for when that was: two clocks that are read one after
// the other would now and then give another second.
func startedAt(start uint64) (time.Time, error) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}, err
	}
	booted, err := parseBootTime(raw)
	if err != nil {
		return time.Time{}, err
	}
	return booted.Add(time.Duration(start) * (time.Second / ticks)).Round(time.Second), nil
}

// parseBootTime reads when the host was booted, to half a second: the kernel
// leaves out what is less than one.
func parseBootTime(raw []byte) (time.Time, error) {
	for line := range bytes.Lines(raw) {
		if text, ok := bytes.CutPrefix(line, []byte("btime ")); ok {
			seconds, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
			if err != nil {
				return time.Time{}, fmt.Errorf("cannot read the time of the boot: %w", err)
			}
			return time.Unix(seconds, 0).Add(time.Second / 2).UTC(), nil
		}
	}
	return time.Time{}, errors.New("the kernel does not tell the time of the boot")
}

// procStat is what we read of /proc/PID/stat.
type procStat struct {
	state byte
	start uint64 // in ticks since the host's boot
}

// startTimeField counts from the state, which follows the name in parentheses.
const startTimeField = 22 - 3

// parseStat reads /proc/PID/stat. The second field, the process's name, may
// hold anything, parentheses and spaces included.
func parseStat(stat []byte) (procStat, error) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return procStat{}, errors.New("the process's stat file has no name")
	}
	fields := bytes.Fields(stat[end+1:])
	if len(fields) <= startTimeField {
		return procStat{}, errors.New("the process's stat file is too short")
	}
	start, err := strconv.ParseUint(string(fields[startTimeField]), 10, 64)
	return procStat{state: fields[0][0], start: start}, err
}
