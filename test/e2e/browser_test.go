//go:build system

package e2e

import (
	"bytes"
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// testBrowser opens a page of a sleeping guest in Chromium, by the name that a route
// below localhost has: no DNS knows it.
func testBrowser(t *testing.T, w *world) {
	body := minimal()
	body.Routes = []api.CreateRoute{{Subdomain: "page", TargetPort: 8080}}
	v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	w.inside(t, v, `mkdir -p /tmp/www; cat >/tmp/www/index.html <<'END'
<p id=text>no script has run</p>
<script>fetch("/host").then(a => a.text()).then(host => { document.getElementById("text").textContent = host.trim() + " at " + location.host })</script>
END
hostname >/tmp/www/host
httpd -p 8080 -h /tmp/www`)
	w.sleep(t, v)

	ctx, cancel := context.WithTimeout(t.Context(), readyLimit)
	defer cancel()
	began := time.Now()
	var complaints bytes.Buffer
	browser := exec.CommandContext(ctx, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server",
		"--virtual-time-budget=20000", "--user-data-dir="+t.TempDir(), "--dump-dom", "http://page.localhost:9090/")
	browser.Stderr = &complaints
	page, err := browser.Output()
	if want := w.inside(t, v, "hostname") + " at page.localhost:9090"; err != nil || !strings.Contains(string(page), want) {
		t.Errorf("the page is %s, %v, want %q\n%s", page, err, want, complaints.Bytes())
	}
	took(t, "a page of a sleeping guest in a browser", began)
}
