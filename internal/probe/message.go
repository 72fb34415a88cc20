// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"text/template"

	"github.com/prometheus/common/version"
	"golang.org/x/net/http/httpguts"
)

const (
	mostRandom  = 1 << 16 // characters of {{random}}
	mostMessage = 1 << 24 // bytes of a request
)

// message makes the requests of one class.
type message interface {
	// bytes returns the next request. An HTTP request is returned as well, for its answer.
	bytes(random *rand.Rand) ([]byte, *http.Request, error)
}

// templated is a text with {{random n}}. It is safe for concurrent use.
type templated struct {
	flag   string
	mu     sync.Mutex
	parsed *template.Template
}

func newTemplated(flag, text string) (*templated, error) {
	parsed, err := template.New("text").Funcs(template.FuncMap{"random": func(int) string { return "" }}).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w: use {{random 16}} for 16 random characters, and {{\"{{\"}} for two braces", flag, err)
	}
	return &templated{flag: flag, parsed: parsed}, nil
}

// text returns the text with other random characters each time.
func (t *templated) text(random *rand.Rand) (string, error) {
	const characters = "abcdefghijklmnopqrstuvwxyz0123456789"
	t.mu.Lock() // the function is that of all users of the template
	defer t.mu.Unlock()
	t.parsed.Funcs(template.FuncMap{"random": func(n int) (string, error) {
		if n < 0 || n > mostRandom {
			return "", fmt.Errorf("random %d: use 0 to %d characters", n, mostRandom)
		}
		text := make([]byte, n)
		for i := range text {
			text[i] = characters[random.IntN(len(characters))]
		}
		return string(text), nil
	}})
	var b strings.Builder
	if err := t.parsed.Execute(&b, nil); err != nil {
		return "", fmt.Errorf("--%s: %w", t.flag, err)
	}
	return b.String(), nil
}

// rawMessage is the content of a file.
type rawMessage struct{ content *templated }

func (m *rawMessage) bytes(random *rand.Rand) ([]byte, *http.Request, error) {
	text, err := m.content.text(random)
	return []byte(text), nil, err
}

// httpMessage is an HTTP/1.1 request as the standard library writes it.
type httpMessage struct {
	method  string
	host    string // of --url: no request goes to another
	url     *templated
	headers []header
	data    *templated // nil for none
}

type header struct {
	name  string
	value *templated
}

func (m *httpMessage) bytes(random *rand.Rand) ([]byte, *http.Request, error) {
	address, err := m.url.text(random)
	if err != nil {
		return nil, nil, err
	}
	var body *strings.Reader
	if m.data != nil {
		text, err := m.data.text(random)
		if err != nil {
			return nil, nil, err
		}
		body = strings.NewReader(text)
	}
	r, err := newRequest(m.method, address, body)
	if err != nil {
		return nil, nil, fmt.Errorf("--%s: %w", m.url.flag, err)
	}
	if r.URL.Host != m.host {
		return nil, nil, fmt.Errorf("--%s: %q is another host than %s: a probe sends to one host only", m.url.flag, address, m.host)
	}
	for _, h := range m.headers {
		value, err := h.value.text(random)
		if err != nil {
			return nil, nil, err
		}
		if http.CanonicalHeaderKey(h.name) == "Host" {
			r.Host = value
		} else {
			r.Header.Add(h.name, value)
		}
	}
	setDefault(r.Header, "User-Agent", Name+"/"+version.Version)
	if m.data != nil {
		setDefault(r.Header, "Content-Type", "application/x-www-form-urlencoded")
	}
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		return nil, nil, fmt.Errorf("making a request: %w", err)
	}
	return b.Bytes(), r, nil
}

// newRequest keeps a nil body from becoming one that is not nil.
func newRequest(method, address string, body *strings.Reader) (*http.Request, error) {
	if body == nil {
		return http.NewRequest(method, address, http.NoBody) //nolint:noctx // it is only written
	}
	return http.NewRequest(method, address, body) //nolint:noctx // it is only written
}

func setDefault(h http.Header, name, value string) {
	if h.Get(name) == "" {
		h.Set(name, value)
	}
}

// messages returns the requests of both classes.
func (o *options) messages() (m [2]message, err error) {
	for i := range m {
		if m[i], err = o.message(i); err != nil {
			return m, err
		}
		// Errors in templates, and in what they make, are found before anything is sent.
		sample, _, err := m[i].bytes(generator(0, 0))
		if err != nil {
			return m, err
		}
		if len(sample) == 0 || len(sample) > mostMessage {
			return m, fmt.Errorf("requests of class %s have %d bytes: use 1 to %d", strings.ToUpper(classNames[i]), len(sample), mostMessage)
		}
	}
	return m, nil
}

func (o *options) message(class int) (message, error) {
	c, name := &o.classes[class], classNames[class]
	if c.raw != "" {
		text, err := readRequest(c.raw)
		if err != nil {
			return nil, fmt.Errorf("--%s.raw: %w", name, err)
		}
		content, err := newTemplated(name+".raw", string(text))
		return &rawMessage{content}, err
	}
	base, err := url.Parse(o.url)
	if err != nil || base.Host == "" || base.User != nil {
		return nil, fmt.Errorf("--url: %q is not the URL of a host, without a user: use --header for a password", o.url)
	}
	m := &httpMessage{method: o.method, host: base.Host}
	flag, address := "url", o.url
	if c.path != "" {
		if !strings.HasPrefix(c.path, "/") {
			return nil, fmt.Errorf("--%s.path: %q does not begin with /", name, c.path)
		}
		flag, address = name+".path", base.Scheme+"://"+base.Host+c.path
	}
	if m.url, err = newTemplated(flag, address); err != nil {
		return nil, err
	}
	if m.headers, err = parseHeaders("header", o.headers); err != nil {
		return nil, err
	}
	own, err := parseHeaders(name+".header", c.headers)
	if err != nil {
		return nil, err
	}
	m.headers = append(m.headers, own...)
	dataFlag, data := "data", o.data
	if c.hasData {
		dataFlag, data = name+".data", c.data
	}
	if o.hasData || c.hasData {
		if m.data, err = newTemplated(dataFlag, data); err != nil {
			return nil, err
		}
	}
	if m.method == "" {
		m.method = http.MethodGet
		if m.data != nil {
			m.method = http.MethodPost
		}
	}
	return m, nil
}

// readRequest reads a file, which may also be a pipe.
func readRequest(path string) ([]byte, error) {
	file, err := os.Open(path) //nolint:gosec // the user names it
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, mostMessage+1))
	if err == nil && len(text) > mostMessage {
		err = fmt.Errorf("%s has more than %d bytes", path, mostMessage)
	}
	return text, err
}

// ownHeaders are headers that the standard library writes itself.
var ownHeaders = []string{"Content-Length", "Transfer-Encoding", "Trailer"}

func parseHeaders(flag string, given []string) (headers []header, err error) {
	for _, text := range given {
		name, value, ok := strings.Cut(text, ":")
		if !ok || strings.TrimSpace(name) == "" {
			return nil, fmt.Errorf("--%s: %q is not a header such as 'X-Token: secret'", flag, text)
		}
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		switch isHost := strings.EqualFold(name, "Host"); {
		case !httpguts.ValidHeaderFieldName(name):
			return nil, fmt.Errorf("--%s: %q is not the name of a header: use letters, digits and -, or --x.raw and --y.raw for other bytes", flag, name)
		case !httpguts.ValidHeaderFieldValue(value) || isHost && !httpguts.ValidHostHeader(value) && !strings.Contains(value, "{{"):
			return nil, fmt.Errorf("--%s: %q is not the value of a header: use --x.raw and --y.raw for other bytes", flag, value)
		case slices.Contains(ownHeaders, http.CanonicalHeaderKey(name)):
			return nil, fmt.Errorf("--%s: %s is that of the data, and cannot be set: use --x.raw and --y.raw for another", flag, name)
		}
		t, err := newTemplated(flag, value)
		if err != nil {
			return nil, err
		}
		headers = append(headers, header{name, t})
	}
	return headers, nil
}
