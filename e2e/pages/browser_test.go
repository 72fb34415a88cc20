// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package pages tests the pages of the exporter in Chromium.
package pages

import (
	"context"
	_ "embed"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/fetch"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// patience is for a machine that does much else.
const patience = 2 * time.Minute

// browser is a tab of Chromium. At the end of a test it must have seen no error, no dialog and no
// request to another host.
type browser struct {
	t      *testing.T
	ctx    context.Context
	isOpen bool // to failed requests, which browsers report as an error

	mu    sync.Mutex
	found []string // complaints
	hosts []string // of requests
}

// skip skips a test for a missing requirement. REQUIRE_BPF=1 turns the skip into a failure.
func skip(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("REQUIRE_BPF") == "1" {
		t.Fatalf("REQUIRE_BPF=1, but %s", reason)
	}
	t.Skip(reason)
}

// newBrowser starts Chromium. Additional flags are those of Chromium.
func newBrowser(t *testing.T, flags ...chromedp.ExecAllocatorOption) *browser {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		skip(t, "there is no chromium: run make deps")
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(program),
		chromedp.NoSandbox, // the tests run as root
		chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("force-color-profile", "srgb"),
		chromedp.Flag("font-render-hinting", "none"),
		chromedp.WSURLReadTimeout(patience),
	)
	allocator, cancel := chromedp.NewExecAllocator(context.Background(), append(options, flags...)...)
	t.Cleanup(cancel)
	ctx, cancelTab := chromedp.NewContext(allocator, chromedp.WithBrowserOption(chromedp.WithDialTimeout(patience)))
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits until the browser has ended
		cancelTab()
	})
	b := &browser{t: t, ctx: ctx}
	chromedp.ListenTarget(ctx, b.listen)
	b.run(network.Enable(), cdplog.Enable(), runtime.Enable())
	t.Cleanup(b.check)
	return b
}

// listen collects what a page must not cause.
func (b *browser) listen(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.APITypeError || e.Type == runtime.APITypeWarning {
			for _, a := range e.Args {
				b.found = append(b.found, fmt.Sprintf("console: %s %s", a.Value, a.Description))
			}
		}
	case *runtime.EventExceptionThrown:
		b.found = append(b.found, "exception: "+e.ExceptionDetails.Error())
	case *cdplog.EventEntryAdded:
		if e.Entry.Level == cdplog.LevelError || e.Entry.Level == cdplog.LevelWarning {
			b.found = append(b.found, fmt.Sprintf("log: %s %s", e.Entry.Text, e.Entry.URL))
		}
	case *page.EventJavascriptDialogOpening:
		b.found = append(b.found, "dialog: "+e.Message)
	case *network.EventRequestWillBeSent:
		if u, err := url.Parse(e.Request.URL); err == nil && u.Scheme != "data" && u.Scheme != "about" {
			b.hosts = append(b.hosts, u.Host)
		}
	}
}

// check reports what the pages caused.
func (b *browser) check() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, complaint := range b.found {
		if !b.isOpen || !strings.Contains(complaint, "Failed to load resource") {
			b.t.Error(complaint)
		}
	}
	hosts := slices.Compact(slices.Sorted(slices.Values(b.hosts)))
	if len(hosts) > 1 {
		b.t.Errorf("requests go to the hosts %q", hosts)
	}
}

// run runs actions in the tab.
func (b *browser) run(actions ...chromedp.Action) {
	b.t.Helper()
	if err := b.try(actions...); err != nil {
		b.t.Fatal(err)
	}
}

func (b *browser) try(actions ...chromedp.Action) error {
	done := make(chan error, 1)
	go func() { done <- chromedp.Run(b.ctx, actions...) }()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		return fmt.Errorf("the browser does not answer within %v", patience)
	}
}

// evaluate returns the value of an expression.
func evaluate[T any](b *browser, expression string) (value T) {
	b.t.Helper()
	b.run(chromedp.Evaluate(expression, &value, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
	return value
}

// await waits until an expression is true.
func (b *browser) await(expression string, within time.Duration) time.Duration {
	b.t.Helper()
	begin := time.Now()
	for {
		var is bool
		b.run(chromedp.Evaluate(expression, &is))
		if is {
			return time.Since(begin)
		}
		if time.Since(begin) > within {
			var text string
			b.run(chromedp.Evaluate(`document.body.innerText`, &text))
			b.t.Fatalf("not true within %v: %s\n%s", within, expression, text)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// show sets the size of the window and the colour scheme.
func (b *browser) show(width, height int64, scheme string) {
	b.t.Helper()
	b.run(
		emulation.SetDeviceMetricsOverride(width, height, 1, false),
		emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}),
	)
}

// withoutScript disables scripts.
func (b *browser) withoutScript() {
	b.t.Helper()
	b.run(emulation.SetScriptExecutionDisabled(true))
}

// answerChallenges answers challenges for a password.
func (b *browser) answerChallenges(user, password string) {
	b.t.Helper()
	chromedp.ListenTarget(b.ctx, func(event any) {
		switch e := event.(type) {
		case *fetch.EventAuthRequired:
			go func() {
				_ = b.try(fetch.ContinueWithAuth(e.RequestID, &fetch.AuthChallengeResponse{
					Response: fetch.AuthChallengeResponseResponseProvideCredentials, Username: user, Password: password,
				}))
			}()
		case *fetch.EventRequestPaused:
			go func() { _ = b.try(fetch.ContinueRequest(e.RequestID)) }()
		}
	})
	b.run(fetch.Enable().WithHandleAuthRequests(true))
}

//go:embed testdata/axe.min.js
var axe string

// expectAccessible runs axe-core on the page. The policy of the pages does not hold for scripts of
// the protocol.
func (b *browser) expectAccessible(what string) {
	b.t.Helper()
	b.run(chromedp.ActionFunc(func(ctx context.Context) error {
		_, exception, err := runtime.Evaluate(axe + "\n;0").Do(ctx)
		if exception != nil {
			return exception
		}
		return err
	}))
	violations := evaluate[[]string](b, `axe.run(document, {resultTypes: ["violations"]}).then(r => r.violations.flatMap(
		v => v.nodes.map(n => v.id + ": " + v.help + ": " + n.html.slice(0, 300) + " " + n.failureSummary)))`)
	for _, v := range violations {
		b.t.Errorf("%s: axe: %s", what, v)
	}
}
