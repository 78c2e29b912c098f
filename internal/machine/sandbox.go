package machine

import (
	"strings"
	"unicode/utf8"

	"github.com/hatchvm/hatch/internal/errs"
)

// Limits on what a sandbox records.
const (
	MaxSandboxEntries = 256      // of its metadata, and of its environment
	MaxSandboxBytes   = 64 << 10 // of names and values together, in each
)

// Sandbox is what a VM records that was made through the door for E2B's clients. A clone
// has all of it. Its JSON form is stored: keys never change.
type Sandbox struct {
	Template   string            `json:"template"`        // that it was made from, as its client named it
	Alias      string            `json:"alias,omitempty"` // name of the template; "" for none
	Metadata   map[string]string `json:"metadata,omitempty"`
	Env        map[string]string `json:"env,omitempty"`         // of each process
	AutoResume bool              `json:"auto_resume,omitempty"` // traffic wakes it
	Open       bool              `json:"open,omitempty"`        // its agent needs no access token
	Guarded    bool              `json:"guarded,omitempty"`     // its other ports need a token, too
}

func (s Spec) checkSandbox() error {
	if s.Sandbox == nil {
		return nil
	}
	for _, m := range []struct {
		field   string
		entries map[string]string
	}{{"metadata", s.Sandbox.Metadata}, {"envVars", s.Sandbox.Env}} {
		if err := checkEntries(m.field, m.entries); err != nil {
			return err
		}
	}
	for name := range s.Sandbox.Env {
		if name == "" || strings.Contains(name, "=") {
			return errs.InvalidField("envVars", "%q is not a name of a variable: want one or more characters without '='", errs.Brief(name))
		}
	}
	return nil
}

func checkEntries(field string, entries map[string]string) error {
	if len(entries) > MaxSandboxEntries {
		return tooMany(field, len(entries), MaxSandboxEntries)
	}
	bytes := 0
	for name, value := range entries {
		bytes += len(name) + len(value)
		if !utf8.ValidString(name+value) || strings.Contains(name+value, "\x00") {
			return errs.InvalidField(field, "%q and its value must be UTF-8 without NUL", errs.Brief(name))
		}
	}
	if bytes > MaxSandboxBytes {
		return tooLong(field, bytes, MaxSandboxBytes)
	}
	return nil
}
