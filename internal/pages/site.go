// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package pages serves the pages of the exporter and their API. The pages are complete without
// script; a script only refreshes them. Everything that they load comes from the exporter.
package pages

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"path"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessment"
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
	"github.com/xdp-audit/xdp_audit_exporter/internal/history"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed assets
var assetFiles embed.FS

// Source is the part of a *bpf.Audit that the pages show.
type Source interface {
	Counters() []bpf.Counters
	Hooks() []bpf.Hook
	Slots() int
	DeviceSlots() bpf.DeviceSlots
	EventCounts() bpf.EventCounts
	WatchCounts() bpf.WatchCounts
	VisitCuts(device string, visit func(early, late float64)) error
	Ready() error
}

// Setting is a flag with its value.
type Setting struct {
	Name     string `json:"name"`
	Value    string `json:"value"`
	Source   string `json:"source"` // flag, environment or default
	Variable string `json:"variable,omitempty"`
	Help     string `json:"help"`
}

// Privileges are the privileges that the process holds.
type Privileges struct {
	Capabilities    []string `json:"capabilities"`
	NoNewPrivileges bool     `json:"no_new_privileges"`
	LandlockABI     int      `json:"landlock_abi"` // 0 for no confinement
}

// Options say what the pages show.
type Options struct {
	Source  Source
	History *history.History
	Flags   *history.Flags

	Covert     *covert.Judge              // nil if the collector is off
	Leak       func() []assessment.Status // nil without assessments
	Audit      bpf.Config
	Settings   []Setting        // the flags
	Privileges *Privileges      // nil if they are not known
	Now        func() time.Time // for tests; nil for the clock

	MetricsPath       string
	Version, Revision string
	ShowFlows         bool
}

// Site is the handler of all pages.
type Site struct {
	Options
	started   time.Time
	home      string // path of the status
	templates *template.Template
	assets    map[string]asset
	version   string // of the assets
	mux       *http.ServeMux
}

type asset struct {
	content []byte
	kind    string
}

// The paths of the pages. That of the status is "/", or StatusPath if the metrics are there.
const (
	StatusPath = "/status"
	APIPath    = "/api/v1/"
)

// New returns the pages.
func New(options Options) (*Site, error) {
	s := &Site{Options: options, home: "/", assets: map[string]asset{}, mux: http.NewServeMux()}
	if s.Now == nil {
		s.Now = time.Now
	}
	s.started = s.Now()
	if s.MetricsPath == "/" {
		s.home = StatusPath
	}
	if err := s.loadAssets(); err != nil {
		return nil, err
	}
	// One set for all pages: the parts that they share are in memory once.
	templates, err := template.New("base.html").Funcs(s.functions()).ParseFS(templateFiles, "templates/*.html")
	if err != nil {
		return nil, fmt.Errorf("reading the pages: %w", err)
	}
	s.templates = templates
	home := s.home
	if home == "/" {
		home = "/{$}"
	}
	s.mux.HandleFunc(home, s.page("status", "Status", s.status))
	s.mux.HandleFunc("/device/{name}", s.page("device", "Device", s.device))
	s.mux.HandleFunc("/flags", s.page("flags", "Flags", s.flags))
	s.mux.HandleFunc("/config", s.page("config", "Configuration", s.config))
	s.mux.HandleFunc(APIPath+"status", s.api(s.status))
	s.mux.HandleFunc(APIPath+"devices/{name}", s.api(s.device))
	s.mux.HandleFunc(APIPath+"flags", s.api(s.flags))
	s.mux.HandleFunc(APIPath+"config", s.api(s.config))
	if s.Covert != nil {
		s.mux.HandleFunc("/covert", s.page("covert", "Covert channels", s.covert))
		s.mux.HandleFunc(APIPath+"covert", s.api(s.covert))
	}
	if s.Leak != nil {
		s.mux.HandleFunc("/leak", s.page("leak", "Leak assessments", s.leak))
		s.mux.HandleFunc(APIPath+"leak", s.api(s.leak))
	}
	s.mux.HandleFunc("/assets/{name}", s.serveAsset)
	s.mux.HandleFunc("/", s.missing)
	return s, nil
}

// Patterns returns the patterns of [http.ServeMux] that belong to the pages.
func (s *Site) Patterns() []string {
	patterns := []string{s.home, "/device/", "/flags", "/config", "/assets/", "/api/"}
	if s.Covert != nil {
		patterns = append(patterns, "/covert")
	}
	if s.Leak != nil {
		patterns = append(patterns, "/leak")
	}
	return patterns
}

// IsTaken reports whether a path belongs to the pages, or may do so with other flags.
func IsTaken(p string) bool {
	switch p {
	case "/flags", "/config", "/covert", "/leak", "/device", "/assets", "/api":
		return true
	}
	first := "/" + firstSegment(p) + "/"
	return first == "/device/" || first == "/assets/" || first == "/api/"
}

func firstSegment(p string) string {
	for dir := path.Dir(p); dir != "/" && dir != "."; dir = path.Dir(dir) {
		p = dir
	}
	return path.Base(p)
}

// Key returns a text that is the same for requests with the same answer.
func (s *Site) Key(r *http.Request) string {
	return r.URL.EscapedPath() + "?" + url.QueryEscape(r.URL.Query().Get("device")) + "&" + url.QueryEscape(r.URL.Query().Get("page"))
}

// policy is the content security policy of all answers.
const policy = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"

// ServeHTTP implements http.Handler.
func (s *Site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Security-Policy", policy)
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Cache-Control", "no-store")
	s.mux.ServeHTTP(w, r)
}

// view is what the templates of all pages get.
type view struct {
	Name, Title string
	Home        string
	MetricsPath string
	Assets      string // version of the assets
	Version     string
	HasCovert   bool
	HasLeak     bool
	Now         time.Time
	NotReady    string
	Page        any
}

// errMissing is the error of a page that does not exist.
type errMissing struct{ text string }

func (e errMissing) Error() string { return e.text }

// page returns the handler of a page whose content a function returns.
func (s *Site) page(name, title string, content func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p, err := content(r)
		if err != nil {
			s.write(w, http.StatusNotFound, "missing", "Not found", err.Error())
			return
		}
		s.write(w, http.StatusOK, name, title, p)
	}
}

func (s *Site) missing(w http.ResponseWriter, r *http.Request) {
	const text = "There is no such page."
	if len(r.URL.Path) >= len("/api/") && r.URL.Path[:len("/api/")] == "/api/" {
		writeJSON(w, http.StatusNotFound, map[string]string{"error": text})
		return
	}
	s.write(w, http.StatusNotFound, "missing", "Not found", text)
}

func (s *Site) write(w http.ResponseWriter, code int, name, title string, content any) {
	v := view{
		Name: name, Title: title, Home: s.home, MetricsPath: s.MetricsPath, Assets: s.version, Version: s.Version,
		HasCovert: s.Covert != nil, HasLeak: s.Leak != nil, Now: s.Now(), Page: content,
	}
	if err := s.Source.Ready(); err != nil {
		v.NotReady = err.Error()
	}
	var page bytes.Buffer
	if err := s.templates.Execute(&page, v); err != nil {
		http.Error(w, "the page could not be made: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write(page.Bytes()) // the client may be gone
}

// api returns the handler of the same content as JSON.
func (s *Site) api(content func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p, err := content(r)
		if err != nil {
			writeJSON(w, http.StatusNotFound, map[string]string{"error": err.Error()})
			return
		}
		writeJSON(w, http.StatusOK, p)
	}
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		http.Error(w, "the answer could not be made: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write(text.Bytes()) // the client may be gone
}

// loadAssets reads the assets. Their version is part of their addresses, so that a browser may keep
// them.
func (s *Site) loadAssets() error {
	hash := sha256.New()
	return fs.WalkDir(assetFiles, "assets", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := assetFiles.ReadFile(name)
		if err != nil {
			return err
		}
		hash.Write(content)
		s.version = hex.EncodeToString(hash.Sum(nil)[:6])
		s.assets[path.Base(name)] = asset{content, kindOf(name)}
		return nil
	})
}

// kindOf does not ask the host, whose tables may say something else.
func kindOf(name string) string {
	switch path.Ext(name) {
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	}
	return mime.TypeByExtension(path.Ext(name))
}

func (s *Site) serveAsset(w http.ResponseWriter, r *http.Request) {
	a, ok := s.assets[r.PathValue("name")]
	if !ok {
		s.missing(w, r)
		return
	}
	w.Header().Set("Content-Type", a.kind)
	w.Header().Set("Cache-Control", "max-age=86400")
	_, _ = w.Write(a.content) // the client may be gone
}
