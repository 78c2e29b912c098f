package boot

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/hatchvm/hatch/internal/agent/proc"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// entrypoint is the one program that the VM runs instead of an init. The kernel
// command line has it as JSON in URL-safe base64.
type entrypoint struct {
	Argv []string `json:"argv"`
	Env  []string `json:"env"`  // NAME=VALUE
	Cwd  string   `json:"cwd"`  // "" means the user's home
	User string   `json:"user"` // NAME or UID, optionally :GROUP; "" means root
}

func parseEntrypoint(text string) (*entrypoint, error) {
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
	if err != nil {
		return nil, errors.New("is not URL-safe base64")
	}
	e := &entrypoint{}
	if err := json.Unmarshal(raw, e); err != nil {
		return nil, fmt.Errorf("is not a JSON object of an entrypoint: %w", err)
	}
	if len(e.Argv) == 0 {
		return nil, errors.New("has no argv")
	}
	return e, nil
}

// start starts the program. Its output goes to the console.
func (e *entrypoint) start() (pid int, err error) {
	spec := wire.ProcessSpec{Argv: e.Argv, Env: map[string]string{}, Dir: e.Cwd, User: e.User}
	for _, v := range e.Env {
		name, value, _ := strings.Cut(v, "=")
		spec.Env[name] = value
	}
	c, err := proc.Resolve(spec)
	if err != nil {
		return 0, fmt.Errorf("cannot run the entrypoint: %w", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer func() { _ = null.Close() }()
	pid, _, err = syscall.StartProcess(c.Path, c.Argv, &syscall.ProcAttr{
		Dir: c.Dir, Env: c.Env, Files: []uintptr{null.Fd(), 1, 2},
		Sys: &syscall.SysProcAttr{Setsid: true, Credential: c.Credential},
	})
	if err != nil {
		return 0, fmt.Errorf("cannot run the entrypoint %s: %w", c.Argv[0], err)
	}
	return pid, nil
}
