package guest

import (
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/vm"
)

// Bounds of what is kept of a report; strings in bytes.
const (
	maxVersion   = 64
	maxAddresses = 64
	maxErrors    = 8
	maxErrorText = 512
)

// report makes what a guest says fit to be stored and shown.
func report(hello wire.Hello, st wire.Status) *vm.GuestReport {
	return &vm.GuestReport{
		AgentVersion: hello.Agent,
		BootID:       hello.BootID,
		Addresses:    addresses(st.Addresses),
		CloudInit:    cloudInit(st.CloudInit),
	}
}

func addresses(given []wire.Address) []netip.Addr {
	var kept []netip.Addr
	for _, a := range given {
		prefix, err := netip.ParsePrefix(a.Prefix)
		if err != nil || slices.Contains(kept, prefix.Addr()) {
			continue
		}
		if kept = append(kept, prefix.Addr()); len(kept) == maxAddresses {
			break
		}
	}
	return kept
}

// cloudInit takes a state that no agent of ours sends for an error.
func cloudInit(given wire.CloudInit) vm.CloudInit {
	known := []string{wire.CloudInitAbsent, wire.CloudInitDisabled, wire.CloudInitRunning, wire.CloudInitDone, wire.CloudInitError}
	c := vm.CloudInit{Status: given.Status}
	if !slices.Contains(known, given.Status) {
		c.Status = wire.CloudInitError
		c.Errors = []string{"the agent reports an unknown state: " + printable(given.Status, maxVersion)}
	}
	for _, e := range given.Errors {
		if len(c.Errors) == maxErrors {
			break
		}
		c.Errors = append(c.Errors, printable(e, maxErrorText))
	}
	return c
}

func same(a, b vm.GuestReport) bool {
	return a.AgentVersion == b.AgentVersion && slices.Equal(a.Addresses, b.Addresses) &&
		a.CloudInit.Status == b.CloudInit.Status && slices.Equal(a.CloudInit.Errors, b.CloudInit.Errors)
}

// printable cuts s to at most limit bytes and replaces what a terminal or a
// log would not show as one plain character.
func printable(s string, limit int) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsSpace(r) {
			r = ' '
		}
		if !unicode.IsPrint(r) {
			r = unicode.ReplacementChar
		}
		if b.Len()+len(string(r)) > limit {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}
