package guest

import (
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/vm"
)

// Limits of a report; those of strings are in bytes.
const (
	maxVersion   = 64
	maxAddresses = 64
	maxErrors    = 8
	maxErrorText = 512
)

// report limits a guest's status and makes it printable.
func report(hello wire.Hello, st wire.Status) *vm.GuestReport {
	return &vm.GuestReport{
		AgentVersion: hello.Agent,
		BootID:       hello.BootID,
		Addresses:    addresses(st.Addresses),
		CloudInit:    cloudInit(st.CloudInit),
		GoingDown:    st.GoingDown,
		SSH:          sshServer(st.SSH),
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

// cloudInit returns cloud-init's state. A state that hatch-agent does not send becomes an
// error.
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
	for _, w := range given.Warnings[:min(maxErrors, len(given.Warnings))] {
		c.Warnings = append(c.Warnings, printable(w, maxErrorText))
	}
	return c
}

// printable cuts s to at most limit bytes, and replaces characters that a terminal or a
// log would interpret.
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
