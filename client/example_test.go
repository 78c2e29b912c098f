package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

func ExampleNew() {
	server := standIn() // in your program: http://127.0.0.1:8080
	defer server.Close()
	c, err := client.New(server.URL, "hatch_key")
	if err != nil {
		fmt.Println(err)
		return
	}
	health, err := c.Health(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(health.Status, health.VMM)
	// Output: ok qemu
}

// A VM is created, and used once its guest is ready.
func ExampleClient_CreateVM() {
	ctx := context.Background()
	c, stop := connected()
	defer stop()

	memory := 1024
	v, err := c.CreateVM(ctx, api.CreateVM{
		Name:        "web",
		MachineSpec: api.MachineSpec{MemMiB: &memory, Labels: map[string]string{"team": "a"}},
	}, client.CreateOptions{IdempotencyKey: "web-1"})
	if client.IsExhausted(err) {
		fmt.Println("the host is full:", err)
		return
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	v, err = c.WaitVM(ctx, v.ID, "ready", 5*time.Minute)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(v.Name, v.State, v.GuestIP)
	// Output: web running 172.16.0.2
}

// The error of a call that the server refuses has a code and, often, a hint.
func ExampleError() {
	c, stop := connected()
	defer stop()

	_, err := c.GetVM(context.Background(), "vm_gone00000000")
	if refused, ok := errors.AsType[*client.Error](err); ok {
		fmt.Println(client.IsNotFound(err), refused.Problem.Code)
	}
	// Output: true vm_not_found
}

// A short command is run, and its output returned.
func ExampleClient_RunExec() {
	c, stop := connected()
	defer stop()

	result, err := c.RunExec(context.Background(), "vm_k3v9q0c2m1xw", api.RunExec{
		Command:   api.Command{Argv: []string{"python3", "-c", "print(6 * 7)"}},
		TimeoutMS: 10_000,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("exit code %d, stdout %q\n", result.ExitCode, result.Stdout)
	// Output: exit code 0, stdout "42\n"
}

// The output of a longer command is copied while it runs. If the connection
// breaks, the session attaches again.
func ExampleClient_OpenExec() {
	c, stop := connected()
	defer stop()

	session, err := c.OpenExec(context.Background(), "vm_k3v9q0c2m1xw", api.RunExec{
		Command:   api.Command{Argv: []string{"sort"}},
		StdinOpen: true,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer session.Close()
	if _, err := io.WriteString(session, "b\na\n"); err != nil {
		fmt.Println(err)
		return
	}
	if err := session.CloseStdin(); err != nil {
		fmt.Println(err)
		return
	}
	exit, err := session.Copy(os.Stdout, os.Stderr)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("exit code", exit.Code)
	// Output:
	// a
	// b
	// exit code 0
}

// A file is written into a VM and read back.
func ExampleClient_WriteFile() {
	ctx := context.Background()
	c, stop := connected()
	defer stop()

	const vm, path = "vm_k3v9q0c2m1xw", "/etc/motd"
	if _, err := c.WriteFile(ctx, vm, path, strings.NewReader("hello\n"), client.WriteOptions{}); err != nil {
		fmt.Println(err)
		return
	}
	file, err := c.ReadFile(ctx, vm, path, client.FilePart{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer file.Close()
	content, err := io.ReadAll(file)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%d bytes: %s", file.Size, content)
	// Output: 6 bytes: hello
}

// A snapshot is taken to go back to, then the VM is forked.
func ExampleClient_ForkVM() {
	ctx := context.Background()
	c, stop := connected()
	defer stop()

	const vm = "vm_k3v9q0c2m1xw"
	snap, err := c.CreateSnapshot(ctx, vm, api.CreateSnapshot{Name: "ready-to-work"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("snapshot:", snap.Name)

	count := 2
	clones, err := c.ForkVM(ctx, vm, api.ForkVM{Count: &count, Name: "worker"})
	if err != nil {
		fmt.Println(err) // not one could be created
		return
	}
	for _, v := range clones.VMs {
		fmt.Println("clone:", v.Name)
	}
	for _, f := range clones.Failed {
		fmt.Println("failed:", f.Message)
	}

	if _, err := c.RestoreVM(ctx, vm, snap.ID); err != nil {
		fmt.Println(err)
	}
	// Output:
	// snapshot: ready-to-work
	// clone: worker-1
	// clone: worker-2
}

// Events are streamed until a VM has stopped.
func ExampleClient_StreamEvents() {
	c, stop := connected()
	defer stop()

	opts := client.EventOptions{VM: "vm_k3v9q0c2m1xw", Types: []string{"vm.state_changed"}, After: client.FromNow}
	lost := func(err error) { fmt.Println("connecting again:", err) }
	for e, err := range c.StreamEvents(context.Background(), &opts, lost) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(e.Seq, e.Message)
		if e.Data["to"] == api.StateStopped {
			break
		}
	}
	// Output:
	// 7 stopping
	// 8 stopped: stopped on request
}

// connected returns a client of a stand-in for hatchd.
func connected() (c *client.Client, stop func()) {
	server := standIn()
	c, err := client.New(server.URL, "hatch_key")
	if err != nil {
		panic(err) // the address of a test server is valid
	}
	return c, server.Close
}

// standIn answers the calls of the examples as hatchd does. It runs no VM.
func standIn() *httptest.Server {
	web := api.VM{ID: "vm_k3v9q0c2m1xw", Name: "web", State: api.StateRunning, GuestIP: "172.16.0.2", SSHPort: 16000}
	answers := map[string]any{
		"GET /healthz":             api.Health{Status: "ok", Version: "v0.1.0", VMM: "qemu"},
		"POST /vms":                web,
		"GET /vms/{id}/wait":       web,
		"POST /vms/{id}/exec":      api.ExecResult{ID: "exec_abc123def456", Stdout: "42\n"},
		"PUT /vms/{id}/files":      api.File{Path: "/etc/motd", Kind: api.FileRegular, Size: 6},
		"POST /vms/{id}/snapshot":  api.Snapshot{ID: "snap_abc123def456", Name: "ready-to-work", VMID: web.ID},
		"POST /vms/{id}/restore":   web,
		"POST /vms/{id}/fork":      api.Copies{VMs: []api.VM{{Name: "worker-1"}, {Name: "worker-2"}}},
		"GET /vms/vm_gone00000000": api.Problem{Status: http.StatusNotFound, Error: "there is no VM vm_gone00000000", Code: "vm_not_found"},
	}
	mux := http.NewServeMux()
	for route, answer := range answers {
		mux.HandleFunc(route, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if p, failed := answer.(api.Problem); failed {
				w.WriteHeader(p.Status)
			}
			_ = json.NewEncoder(w).Encode(answer)
		})
	}
	mux.HandleFunc("GET /vms/{id}/files", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello\n") })
	mux.HandleFunc("GET /vms/{id}/exec", sortOverWebSocket)
	mux.HandleFunc("GET /vms/{id}/events", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, `id: 7
data: {"seq": 7, "type": "vm.state_changed", "message": "stopping", "data": {"to": "stopping"}}

id: 8
data: {"seq": 8, "type": "vm.state_changed", "message": "stopped: stopped on request", "data": {"to": "stopped"}}

`)
	})
	return httptest.NewServer(mux)
}

// sortOverWebSocket serves one run of sort.
func sortOverWebSocket(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = conn.CloseNow() }()
	send := func(kind websocket.MessageType, text string) { _ = conn.Write(r.Context(), kind, []byte(text)) }
	_, _, _ = conn.Read(r.Context()) // the command
	send(websocket.MessageText, `{"type": "started", "exec": {"id": "exec_abc123def456"}, "offset": 0}`)
	var lines []string
	for { // stdin in binary messages, up to the text close_stdin
		kind, message, err := conn.Read(r.Context())
		if err != nil || kind == websocket.MessageText {
			break
		}
		lines = append(lines, slices.Collect(strings.Lines(string(message[1:])))...)
	}
	slices.Sort(lines)
	send(websocket.MessageBinary, string(rune(api.ChannelStdout))+strings.Join(lines, ""))
	send(websocket.MessageText, `{"type": "exit", "exit_code": 0}`)
	_, _, _ = conn.Read(r.Context()) // until the client closes
}
