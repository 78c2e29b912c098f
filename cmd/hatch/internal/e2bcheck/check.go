// Package e2bcheck makes a sandbox as the client libraries of E2B do, runs a command in
// it, and kills it, so that an operator sees whether they would work.
//
// It speaks as little of their protocol as that needs, over a connection of its own: what
// it sends is what the Python library 2.63 sends. It is no client for programs. Start at
// [Run].
package e2bcheck

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Config is how to reach the server.
type Config struct {
	API        string // URL of the control plane
	SandboxURL string // of all agents; "" for the host names that the server gives
	Key        string
	Template   string
	HTTP       *http.Client
}

// Step is one step of the check, in the order in which they are done.
type Step struct {
	Name   string `json:"step"`
	Took   int64  `json:"ms"`
	Detail string `json:"detail,omitempty"`
}

const (
	agentPort  = "49983"
	lifetime   = 120 // of the sandbox, in seconds, should it not be killed
	greeting   = "hello from a sandbox"
	maxAnswer  = 1 << 20 // bytes
	minVersion = "0.1.0"
)

// sandbox is what the server says of the sandbox that it has made.
type sandbox struct {
	ID      string `json:"sandboxID"`
	Version string `json:"envdVersion"`
	Token   string `json:"envdAccessToken"`
	Domain  string `json:"domain"`
}

// checker is one run.
type checker struct {
	Config
	steps []Step
	made  sandbox
}

// Run checks, and returns the steps that were done; err is that of the last one.
func Run(ctx context.Context, cfg Config) (steps []Step, err error) {
	c := &checker{Config: cfg}
	err = c.step(ctx, "create", c.create)
	if err != nil {
		return c.steps, err
	}
	err = c.step(ctx, "health", c.health)
	if err == nil {
		err = c.step(ctx, "command", c.run)
	}
	return c.steps, errors.Join(err, c.step(context.WithoutCancel(ctx), "kill", c.kill))
}

func (c *checker) step(ctx context.Context, name string, do func(context.Context) (detail string, err error)) error {
	began := time.Now()
	detail, err := do(ctx)
	if err != nil {
		detail = "failed"
		err = fmt.Errorf("the step %s has failed: %w", name, err)
	}
	c.steps = append(c.steps, Step{name, time.Since(began).Milliseconds(), detail})
	return err
}

func (c *checker) create(ctx context.Context) (string, error) {
	body, err := json.Marshal(map[string]any{"templateID": c.Template, "timeout": lifetime, "metadata": map[string]string{"check": "hatch"}, "envVars": map[string]string{}})
	if err != nil {
		return "", err
	}
	text, err := c.send(ctx, http.MethodPost, c.API+"/v2/sandboxes", body, http.Header{"X-Api-Key": {c.Key}}, http.StatusCreated)
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(text, &c.made); err != nil || c.made.ID == "" {
		return "", fmt.Errorf("the answer is no sandbox: %q", text)
	}
	if c.made.Token == "" {
		return "", errors.New("the server gives no access token: the key lacks exec:write, files:read or files:write")
	}
	return c.made.ID + ", envd " + cmp.Or(c.made.Version, minVersion), nil
}

// agent returns the URL of a path of the sandbox's agent, and the headers to send.
func (c *checker) agent(path string) (url string, h http.Header) {
	base := cmp.Or(c.SandboxURL, "https://"+agentPort+"-"+c.made.ID+"."+c.made.Domain)
	return base + path, http.Header{"E2b-Sandbox-Id": {c.made.ID}, "E2b-Sandbox-Port": {agentPort}, "X-Access-Token": {c.made.Token}}
}

func (c *checker) health(ctx context.Context) (string, error) {
	url, h := c.agent("/health")
	_, err := c.send(ctx, http.MethodGet, url, nil, h, http.StatusNoContent)
	return "", err
}

// run runs a command, and reads the frames of its answer: a byte of flags, four of length,
// and JSON.
func (c *checker) run(ctx context.Context) (string, error) {
	message, err := json.Marshal(map[string]any{"process": map[string]any{"cmd": "/bin/bash", "args": []string{"-l", "-c", "echo " + greeting}}, "stdin": false})
	if err != nil {
		return "", err
	}
	url, h := c.agent("/process.Process/Start")
	h.Set("Content-Type", "application/connect+json")
	h.Set("Connect-Protocol-Version", "1")
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	text, err := c.send(ctx, http.MethodPost, url, append(frame, message...), h, http.StatusOK)
	if err != nil {
		return "", err
	}
	output, err := outputOf(text)
	if err == nil && output != greeting+"\n" {
		err = fmt.Errorf("the command has printed %q", output)
	}
	return fmt.Sprintf("%q", output), err
}

// event is what a frame has.
type event struct {
	Event struct {
		Data *struct{ Stdout, Stderr []byte }
		End  *struct {
			ExitCode int
			Error    string
		}
	}
	Error *struct{ Code, Message string }
}

const headBytes = 5

// outputOf returns what a command has printed, if it has succeeded.
func outputOf(frames []byte) (output string, err error) {
	ended := false
	for len(frames) >= headBytes {
		size := int(binary.BigEndian.Uint32(frames[1:headBytes]))
		if size > len(frames)-headBytes {
			break
		}
		var e event
		if err := json.Unmarshal(frames[headBytes:headBytes+size], &e); err != nil {
			return output, fmt.Errorf("cannot read an event of the command: %w", err)
		}
		frames = frames[headBytes+size:]
		switch {
		case e.Error != nil:
			return output, fmt.Errorf("%s: %s", e.Error.Code, e.Error.Message)
		case e.Event.Data != nil:
			output += string(e.Event.Data.Stdout) + string(e.Event.Data.Stderr)
		case e.Event.End != nil && e.Event.End.ExitCode != 0:
			return output, fmt.Errorf("the command has failed with %d: %s", e.Event.End.ExitCode, output)
		case e.Event.End != nil:
			ended = true
		}
	}
	if !ended {
		return output, errors.New("the stream of the command has no end")
	}
	return output, nil
}

func (c *checker) kill(ctx context.Context) (string, error) {
	_, err := c.send(ctx, http.MethodDelete, c.API+"/sandboxes/"+c.made.ID, nil, http.Header{"X-Api-Key": {c.Key}}, http.StatusNoContent)
	return "", err
}

// send returns the body of an answer with the status that is wanted.
func (c *checker) send(ctx context.Context, method, url string, body []byte, h http.Header, want int) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header = h
	if body != nil && h.Get("Content-Type") == "" {
		h.Set("Content-Type", "application/json")
	}
	resp, err := c.HTTP.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("cannot read the answer: %w", err)
	}
	if resp.StatusCode != want {
		return nil, fmt.Errorf("%s %s: %s: %s", method, r.URL.Path, resp.Status, bytes.TrimSpace(text))
	}
	return text, nil
}
