package vhostvsock

import (
	"time"

	"golang.org/x/sys/unix"
)

// addFlow enters a new flow with its end of a socket pair.
func (s *session) addFlow(key flowKey, fd int, end *endState) *flow {
	f := &flow{key: key, id: s.nextID, fd: fd, end: end}
	s.nextID++
	s.flows[key] = f
	s.byID[f.id] = f
	return f
}

// flowEvents is what a flow's socket is watched for; EPOLLOUT comes on top while
// data is held. Edge-triggered: the flow remembers what it has not dealt with.
const flowEvents = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET

// open makes a flow flowOpen.
func (s *session) open(f *flow) error {
	f.state = flowOpen
	return s.watch(f.fd, f.id, flowEvents)
}

// remove forgets a flow and closes its fd.
func (s *session) remove(f *flow) {
	if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
	if s.flows[f.key] == f {
		delete(s.flows, f.key)
	}
	delete(s.byID, f.id)
	s.ready.remove(f)
	replaceFd(&f.fd, -1)
	f.held.discard(f.held.size)
	f.state = flowClosing
	f.owe, f.shutWant, f.shutTold = 0, 0, 0
}

// detach ends a flow that the guest has ended, and leaves what it sent to the
// reader. reset says whether that is less than it meant to send.
func (s *session) detach(f *flow, reset bool) {
	if f.fd < 0 {
		s.remove(f)
		return
	}
	_ = unix.Shutdown(f.fd, unix.SHUT_RD)
	if f.held.size == 0 {
		f.end.set(f.fd, reset)
		s.remove(f)
		return
	}
	s.unwatch(f.fd)
	held, fd, end := f.held, f.fd, f.end
	f.held, f.fd = backlog{}, -1
	s.remove(f)
	s.dev.draining.Add(1)
	go func() { // ends with its Conn
		defer s.dev.draining.Add(-1)
		held.drain(fd, end, reset)
	}()
}

// abort ends a flow that cannot go on.
func (s *session) abort(f *flow) {
	s.reset(f.key, socketStream)
	s.detach(f, true)
}

// dropFlows ends all flows without a word to the guest, which is not there any more.
func (s *session) dropFlows() {
	for _, f := range s.flows {
		if f.state == flowRequested {
			s.answerDial(f, errGuestGone)
		} else {
			s.detach(f, f.shutHeard&shutSend == 0)
		}
	}
	s.resets = queue[resetReply]{}
}

// full says whether there is no room for another flow.
func (s *session) full() bool {
	return len(s.flows)+int(s.dev.draining.Load()) >= maxFlows
}

// startTimer begins closeTimeout for a flow that the host has closed.
func (s *session) startTimer(f *flow) {
	if f.timer == nil {
		f.timerCheck = f.sent
		f.timer = time.AfterFunc(closeTimeout, func() { s.mail.post(command{kind: cmdExpire, flow: f}) })
	}
}

// expire ends a flow whose guest did not do its part in time.
func (s *session) expire(f *flow) {
	switch {
	case s.flows[f.key] != f:
	case f.sent != f.timerCheck: // it is slow, but it reads
		f.timer = nil
		s.startTimer(f)
	default:
		s.reset(f.key, socketStream)
		s.remove(f)
	}
}
