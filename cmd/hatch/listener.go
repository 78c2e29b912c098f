package main

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// servesDataDir reports whether the server at address is the hatchd of a data
// directory on this host: the process that listens there has the directory's lock
// file open. Anything else may forward to another host, as a tunnel does, or belong
// to another user. A process that cannot be examined is none.
func servesDataDir(address, dataDir string) bool {
	u, err := url.Parse(address)
	if err != nil || !isLoopback(address) {
		return false
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		return false
	}
	lock, err := os.Stat(filepath.Join(dataDir, "hatchd.lock"))
	if err != nil {
		return false
	}
	var sockets []string
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		sockets = append(sockets, listeners(table, uint16(port))...)
	}
	if len(sockets) == 0 {
		return false
	}
	processes, err := filepath.Glob("/proc/[0-9]*/fd")
	if err != nil {
		return false
	}
	return slices.ContainsFunc(processes, func(fds string) bool { return holdsAll(fds, sockets, lock) })
}

// listeners returns the sockets that listen on a port of loopback, or of all
// addresses, as links in /proc name them. table is one of /proc/net/tcp.
func listeners(table string, port uint16) []string {
	const listening = "0A"
	f, err := os.Open(table)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	var found []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text()) // sl, local address, remote address, state, …, inode
		if len(fields) < 10 || fields[3] != listening {
			continue
		}
		text, portText, _ := strings.Cut(fields[1], ":")
		raw, err := hex.DecodeString(text)
		if err != nil || portText != fmt.Sprintf("%04X", port) {
			continue
		}
		for word := range slices.Chunk(raw, 4) { // little-endian, 32 bits at a time
			slices.Reverse(word)
		}
		if addr, ok := netip.AddrFromSlice(raw); ok && (addr.Unmap().IsLoopback() || addr.IsUnspecified()) {
			found = append(found, "socket:["+fields[9]+"]")
		}
	}
	return found
}

// holdsAll reports whether the process with the descriptors in fds has all sockets
// and the lock file open.
func holdsAll(fds string, sockets []string, lock os.FileInfo) bool {
	entries, err := os.ReadDir(fds)
	if err != nil {
		return false // it has ended, or is not for us to examine
	}
	var hasLock bool
	held := map[string]bool{}
	for _, e := range entries {
		path := filepath.Join(fds, e.Name())
		target, err := os.Readlink(path)
		if err != nil {
			continue
		}
		held[target] = true
		if info, err := os.Stat(path); err == nil && filepath.Base(target) == lock.Name() {
			hasLock = hasLock || os.SameFile(info, lock)
		}
	}
	return hasLock && !slices.ContainsFunc(sockets, func(s string) bool { return !held[s] })
}
