//go:build linux

// Package mapping reads memory of another process that is a private mapping of a
// shared, immutable file: pages that the process has changed are its own, all
// others are the file's. It saves the memory of guests that run on a base.
//
// The process may be hostile. It can make its own memory wrong, or reading it fail.
// It must be stopped during the read, or the result mixes several moments.
//
// The package never changes the process or the file, nor fills the file's holes.
// The caller needs CAP_SYS_PTRACE and CAP_SYS_ADMIN. Start at [Find].
package mapping

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrNone says that a process has no such mapping.
var ErrNone = errors.New("the process has not mapped the file")

// Mapping is a process's mapping of a whole file.
type Mapping struct {
	pid   int
	size  int64
	parts []part // in the file's order, without gaps
}

// part is one line of /proc/PID/maps.
type part struct {
	begin, end uint64 // addresses in the process
	offset     int64  // of begin, in the file
}

// Link is the target of links below /proc to a memfd of this name.
func Link(name string) string { return "/memfd:" + name + " (deleted)" }

// Find looks for a private mapping of the whole memfd of this name and size in
// bytes, in one or more parts. Errors: ErrNone.
func Find(pid int, name string, size int64) (*Mapping, error) {
	table, err := os.Open(procPath(pid, "maps"))
	if err != nil {
		return nil, fmt.Errorf("cannot read the mappings of process %d: %w", pid, err)
	}
	defer func() { _ = table.Close() }()
	parts, err := parseMaps(table, Link(name))
	if err != nil {
		return nil, fmt.Errorf("cannot read the mappings of process %d: %w", pid, err)
	}
	if len(parts) == 0 {
		return nil, ErrNone
	}
	if err := checkWhole(parts, size); err != nil {
		return nil, err
	}
	return &Mapping{pid: pid, size: size, parts: parts}, nil
}

// maxMaps bounds the table of mappings, in bytes; QEMU's has some 30 KiB.
const maxMaps = 8 << 20

// parseMaps reads the private mappings of one path from /proc/PID/maps, whose
// lines are: BEGIN-END PERMISSIONS OFFSET DEVICE INODE PATH.
func parseMaps(table io.Reader, path string) (parts []part, err error) {
	lines := bufio.NewScanner(io.LimitReader(table, maxMaps))
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), " ", 6)
		if len(fields) < 6 || strings.TrimLeft(fields[5], " ") != path || !strings.HasSuffix(fields[1], "p") {
			continue
		}
		p, err := parsePart(fields[0], fields[2])
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	slices.SortFunc(parts, func(a, b part) int { return int(a.offset - b.offset) })
	return parts, lines.Err()
}

func parsePart(addresses, offset string) (part, error) {
	first, last, _ := strings.Cut(addresses, "-")
	begin, beginErr := strconv.ParseUint(first, 16, 64)
	end, endErr := strconv.ParseUint(last, 16, 64)
	at, atErr := strconv.ParseInt(offset, 16, 64)
	if err := errors.Join(beginErr, endErr, atErr); err != nil {
		return part{}, fmt.Errorf("cannot parse the table of mappings: %w", err)
	}
	if begin >= end || begin%pageSize != 0 || end%pageSize != 0 || at%pageSize != 0 {
		return part{}, fmt.Errorf("cannot parse the table of mappings: %s at %s is no part of a file", addresses, offset)
	}
	return part{begin: begin, end: end, offset: at}, nil
}

// checkWhole checks that the parts cover a file of this size, each byte once.
func checkWhole(parts []part, size int64) error {
	at := int64(0)
	for _, p := range parts {
		if p.offset != at || p.end-p.begin > uint64(size-at) {
			return fmt.Errorf("the process has not mapped each byte of the file once: offset %d follows %d", p.offset, at)
		}
		at += int64(p.end - p.begin)
	}
	if at != size {
		return fmt.Errorf("the process has mapped %d of the file's %d bytes", at, size)
	}
	return nil
}

func procPath(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}
