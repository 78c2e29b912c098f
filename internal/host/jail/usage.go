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

// Usage is what a process has used since its start.
type Usage struct {
	StartedAt time.Time     // to the second
	CPU       time.Duration // user and system time of all its threads, ended ones too
	Resident  int64         // bytes of resident memory, shared memory included
}

// Usage reads the process's usage. Errors: ErrGone.
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
	// If the pid is the same process's now, it was so at the reads above: the pid's
	// next process starts later.
	if st.start != p.identity.StartTime || st.state == 'Z' || st.state == 'X' {
		return Usage{}, ErrGone
	}
	started, err := startedAt(st.start)
	return Usage{StartedAt: started, CPU: cpu, Resident: resident * int64(os.Getpagesize())}, err
}

// cpuTime reads the CPU clock of the process, in nanoseconds; /proc has hundredths
// of a second.
func cpuTime(pid int) (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED, of a whole process
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|scheduled, &ts); err != nil {
		return 0, err
	}
	return time.Duration(ts.Nano()), nil
}

// residentPages reads /proc/PID/statm, which is exact on recent kernels; the same
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

// ticks is the number of ticks per second in /proc.
const ticks = 100

// startedAt turns ticks since the host's boot into a time. It uses the kernel's
// time of the boot: the difference of two clocks, read one after the other, would
// vary by a second.
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

// parseBootTime reads the time of the boot from /proc/stat, which has whole
// seconds: the result is half a second off at most.
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
	return time.Time{}, errors.New("/proc/stat has no time of the boot")
}

// procStat is a part of /proc/PID/stat.
type procStat struct {
	state  byte
	kernel bool   // a thread of the kernel: it executes no program
	start  uint64 // in ticks since the host's boot
}

// Fields of /proc/PID/stat, counted from the state, which follows the name in
// parentheses.
const (
	flagsField     = 9 - 3
	startTimeField = 22 - 3
)

// kernelThread is PF_KTHREAD of linux/sched.h.
const kernelThread = 0x00200000

// parseStat reads /proc/PID/stat. The second field, the name of the process, may
// contain any character, parentheses and spaces included.
func parseStat(stat []byte) (procStat, error) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return procStat{}, errors.New("the process's stat file has no name")
	}
	fields := bytes.Fields(stat[end+1:])
	if len(fields) <= startTimeField {
		return procStat{}, errors.New("the process's stat file is too short")
	}
	flags, err := strconv.ParseUint(string(fields[flagsField]), 10, 64)
	if err != nil {
		return procStat{}, err
	}
	start, err := strconv.ParseUint(string(fields[startTimeField]), 10, 64)
	return procStat{state: fields[0][0], kernel: flags&kernelThread != 0, start: start}, err
}
