package script

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// receiverCommand is a server that webhooks are sent to:
//
//	receiver start VAR           (its address goes to the variable)
//	receiver secret FILE         (the last line of a file is the secret to verify with)
//	receiver answer STATUS       (what it answers from now on; 200 at first)
//	receiver forget messages     (it has got so far)
//	receiver await COUNT REGEXP  (until so many messages fit that were well signed)
func receiverCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: receiver start|secret|answer|forget|await ARGUMENT...")
	}
	r := ts.Value(receiverKey{}).(*receiver)
	switch args[0] {
	case "start":
		server := httptest.NewServer(r)
		ts.Defer(server.Close)
		ts.Setenv(args[1], server.URL)
	case "secret":
		lines := strings.Split(strings.TrimSpace(ts.ReadFile(args[1])), "\n")
		r.set(func() { r.secret = lines[len(lines)-1] })
	case "answer":
		status, err := strconv.Atoi(args[1])
		ts.Check(err)
		r.set(func() { r.status = status })
	case "forget":
		r.set(func() { r.messages = nil })
	case "await":
		count, err := strconv.Atoi(args[1])
		ts.Check(err)
		ts.Check(r.await(count, regexp.MustCompile(args[2])))
	default:
		ts.Fatalf("there is no receiver %s", args[0])
	}
}

// receiverKey finds a script's receiver among its values.
type receiverKey struct{}

// awaitLimit is how long a message may take.
const awaitLimit = 20 * time.Second

type receiver struct {
	arrived chan struct{}

	mu       sync.Mutex
	secret   string
	status   int
	messages []string // "signed TYPE MESSAGE" or "unsigned …"
}

func (r *receiver) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// ServeHTTP verifies as the specification asks, and notes what it got.
func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(req.Body, 1<<20))
	var m struct {
		Type string
		Data struct{ Message string }
	}
	_ = json.Unmarshal(body, &m) // another body matches no await
	r.mu.Lock()
	defer r.mu.Unlock()
	signed := "unsigned"
	key, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(r.secret, "whsec_"))
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", req.Header.Get("webhook-id"), req.Header.Get("webhook-timestamp"), body)
	if req.Header.Get("webhook-signature") == "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
		signed = "signed"
	}
	r.messages = append(r.messages, strings.Join([]string{signed, m.Type, m.Data.Message}, " "))
	w.WriteHeader(r.status)
	select {
	case r.arrived <- struct{}{}:
	default:
	}
}

func (r *receiver) await(count int, wanted *regexp.Regexp) error {
	late := time.After(awaitLimit)
	for {
		r.mu.Lock()
		got, fit := strings.Join(r.messages, "\n"), 0
		for _, m := range r.messages {
			if wanted.MatchString(m) {
				fit++
			}
		}
		r.mu.Unlock()
		if fit >= count {
			return nil
		}
		select {
		case <-r.arrived:
		case <-late:
			return fmt.Errorf("%d messages of %d that fit %s; there are:\n%s", fit, count, wanted, got)
		}
	}
}
