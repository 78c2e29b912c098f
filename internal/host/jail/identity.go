//go:build linux

package jail

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Identity identifies a process on this boot of this host.
type Identity struct {
	PID       int
	StartTime uint64 // field 22 of /proc/PID/stat, in clock ticks since boot
	BootID    string
	Exe       string // target of /proc/PID/exe; the same after the file was replaced
}

// Identify reads the identity of a live process.
func Identify(pid int) (Identity, error) {
	stat, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return Identity{}, err
	}
	st, err := parseStat(stat)
	if err != nil {
		return Identity{}, err
	}
	exe, err := exeOf(pid)
	if err != nil {
		return Identity{}, err
	}
	boot, err := BootID()
	return Identity{PID: pid, StartTime: st.start, BootID: boot, Exe: exe}, err
}

// BootID returns the id of this boot of the host.
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("cannot read the boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

func procPath(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}

// exeOf returns the program that a process runs, also when an upgrade has replaced
// its file.
func exeOf(pid int) (string, error) {
	exe, err := os.Readlink(procPath(pid, "exe"))
	return strings.TrimSuffix(exe, " (deleted)"), err
}

// Running is a process found by Find.
type Running struct {
	Identity Identity
	Args     []string // without the program's own name
}

// Find returns the live processes that run exe and whose arguments accept accepts.
// It leaves out processes that end during the search.
func Find(exe string, accept func(args []string) bool) ([]Running, error) {
	return find(func(pid int) bool {
		got, err := exeOf(pid)
		return err == nil && got == exe
	}, accept)
}

// Runners returns the live processes that run exe, with any arguments: a process
// can hide those.
func Runners(exe string) ([]Identity, error) {
	pids, err := processes()
	if err != nil {
		return nil, err
	}
	var found []Identity
	for _, pid := range pids {
		if id, err := Identify(pid); err == nil && id.Exe == exe {
			found = append(found, id)
		}
	}
	return found, nil
}

// FindFile is Find for processes that run the file at this path, which may have
// another name in their view of the file system.
func FindFile(path string, accept func(args []string) bool) ([]Running, error) {
	file, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	return find(func(pid int) bool {
		got, err := os.Stat(procPath(pid, "exe"))
		return err == nil && os.SameFile(got, file)
	}, accept)
}

func find(runs func(pid int) bool, accept func(args []string) bool) ([]Running, error) {
	pids, err := processes()
	if err != nil {
		return nil, err
	}
	var found []Running
	for _, pid := range pids {
		if !runs(pid) {
			continue
		}
		if r, err := inspect(pid); err == nil && accept(r.Args) {
			found = append(found, r)
		}
	}
	return found, nil
}

func processes() (pids []int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// inspect reads a process's identity and arguments. It fails for a process that has
// only begun to execute its program, and for one that has ended.
func inspect(pid int) (Running, error) {
	line, err := os.ReadFile(procPath(pid, "cmdline"))
	if err != nil {
		return Running{}, err
	}
	if len(line) == 0 {
		return Running{}, fmt.Errorf("process %d has no arguments", pid)
	}
	id, err := Identify(pid)
	return Running{Identity: id, Args: strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")[1:]}, err
}

// HoldsFile reports whether the process has one of these files open. links are
// /proc links such as "socket:[4711]".
func HoldsFile(pid int, links map[string]bool) bool {
	entries, err := os.ReadDir(procPath(pid, "fd"))
	if err != nil {
		return false
	}
	for _, e := range entries {
		if link, err := os.Readlink(filepath.Join(procPath(pid, "fd"), e.Name())); err == nil && links[link] {
			return true
		}
	}
	return false
}
