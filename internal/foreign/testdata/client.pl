# The checks with Net::Stomp, which speaks STOMP 1.0: client.pl HOST PORT
# It says "ok CHECK" for each that passes and ends with 1 at the first that fails.
use strict;
use warnings;
use utf8;
use Net::Stomp;

my ($host, $port) = @ARGV;
my ($login, $passcode) = @ENV{qw(CLIENT_LOGIN CLIENT_PASSCODE)};
my ($patience, $quiet) = (30, 0.1);
my $name = 'pl.';
$| = 1;

sub fail { die join('', @_) . "\n" }

sub same {
    my ($got, $want, $what) = @_;
    fail("$what: got ", $got // 'nothing', ", want $want") unless defined $got && $got eq $want;
}

# peer is a connected client.
sub peer {
    my $s = Net::Stomp->new({hostname => $host, port => $port, timeout => $patience, connect_delay => 0.1});
    my $f = $s->connect({login => $login, passcode => $_[0] // $passcode});
    fail('not connected: ', $f ? $f->headers->{message} : 'nothing') unless $f && $f->command eq 'CONNECTED';
    return $s;
}

# next_frame is the next frame, of the command and with the body that is wanted.
sub next_frame {
    my ($s, $command, $body) = @_;
    my $f = $s->receive_frame or fail("no $command came");
    same($f->command, $command, 'command (' . ($f->headers->{message} // '') . ')');
    same($f->body, $body, 'body') if defined $body;
    return $f;
}

sub silent {
    my ($s) = @_;
    return unless $s->can_read({timeout => $quiet});
    my $f = $s->receive_frame({timeout => $quiet}) or return;
    fail('got ', $f->command, ' ', $f->body);
}

# receipt sends a frame that Net::Stomp has no receipt for, and waits for it.
my $receipts = 0;
sub receipt {
    my ($s, $method, $conf) = @_;
    my $r = 'receipt-' . ++$receipts;
    if ($method =~ /^[A-Z]+$/) {
        $s->send_frame(Net::Stomp::Frame->new({command => $method, headers => {%$conf, receipt => $r}}));
    } else {
        $s->$method({%$conf, receipt => $r});
    }
    my $f = next_frame($s, 'RECEIPT');
    same($f->headers->{'receipt-id'}, $r, 'receipt-id');
    return $f;
}

sub put {
    my ($s, $queue, @bodies) = @_;
    for my $body (@bodies) {
        $s->send_with_receipt({destination => "/queue/$queue", body => $body}) or fail("no receipt for $body");
    }
}

sub count {
    my ($s, $queue) = @_;
    my $frame;
    $s->send_with_receipt({destination => "/control/count-msgs/queue/$queue", body => ''}, $frame) or fail('no receipt of count');
    return $frame->headers->{'num-messages'};
}

# left asserts what a queue still gives to a new client, and takes it.
sub left {
    my ($queue, @bodies) = @_;
    my $s = peer();
    receipt($s, subscribe => {destination => "/queue/$queue", ack => 'client'});
    my @messages = map { next_frame($s, MESSAGE => $_) } @bodies;
    receipt($s, ack => {frame => $_}) for @messages;
    same(count($s, $queue), 0, 'left');
    $s->disconnect;
}

my @checks = (
    login => sub {
        my $s = peer();
        fail('no session') unless $s->session_id;
        $s->disconnect;
        fail('a wrong passcode connects') if eval { peer('wrong') };
    },
    receipt => sub {
        my $s = peer();
        put($s, $name . 'receipt', 'one');
        same(count($s, $name . 'receipt'), 1, 'count');
        $s->disconnect;
    },
    auto => sub {
        my ($s, $p, $q) = (peer(), peer(), $name . 'auto');
        receipt($s, subscribe => {destination => "/queue/$q"}); # without id
        put($p, $q, qw(a b c));
        next_frame($s, MESSAGE => $_) for qw(a b c);
        receipt($s, unsubscribe => {destination => "/queue/$q"});
        put($p, $q, 'd');
        silent($s);
        $_->disconnect for $s, $p;
        left($q, 'd');
    },
    client => sub {
        my ($s, $q) = (peer(), $name . 'client');
        put($s, $q, 1 .. 4);
        receipt($s, subscribe => {destination => "/queue/$q", ack => 'client', id => 'mine'});
        my @all = map { next_frame($s, MESSAGE => $_) } 1 .. 4;
        same($_->headers->{subscription}, 'mine', 'subscription') for @all; # S73
        receipt($s, ack => {frame => $all[2]}); # of 1.0: only that one, S87
        $s->disconnect;
        left($q, 1, 2, 4);
    },
    abort => sub {
        my ($s, $q) = (peer(), $name . 'abort');
        put($s, $q, 'kept');
        receipt($s, subscribe => {destination => "/queue/$q", ack => 'client'});
        my $m = next_frame($s, MESSAGE => 'kept');
        receipt($s, BEGIN => {transaction => 't'});
        $s->send({destination => "/queue/$q", body => 'never', transaction => 't'});
        receipt($s, ack => {frame => $m, transaction => 't'});
        receipt($s, ABORT => {transaction => 't'});
        $s->disconnect;
        left($q, 'kept');
    },
    commit => sub {
        my ($s, $q) = (peer(), $name . 'commit');
        # It waits for the receipt of the SEND before its COMMIT: S106.
        $s->send_transactional({destination => "/queue/$q", body => $_}) or fail("$_ not sent") for qw(one two);
        same(count($s, $q), 2, 'count');
        receipt($s, subscribe => {destination => "/queue/$q", ack => 'client'});
        my $m = next_frame($s, MESSAGE => 'one');
        next_frame($s, MESSAGE => 'two');
        receipt($s, BEGIN => {transaction => 't'});
        receipt($s, ack => {frame => $m, transaction => 't'});
        receipt($s, COMMIT => {transaction => 't'});
        $s->disconnect;
        left($q, 'two');
    },
    headers => sub {
        my $queue = "${name}headers/a:b\\c Ünï ☃";
        utf8::encode($queue);
        my ($s, $p) = (peer(), peer());
        receipt($s, subscribe => {destination => "/queue/$queue"});
        my %sent = (colon => 'a:b::c', backslash => 'a\\b\\n\\c\\', unicode => 'żółw 😀', 'content-type' => 'text/plain;charset=utf-8');
        utf8::encode($_) for values %sent;
        $p->send_with_receipt({destination => "/queue/$queue", body => 'x', %sent}) or fail('no receipt');
        my $m = next_frame($s, MESSAGE => 'x');
        same($m->headers->{$_}, $sent{$_}, $_) for sort keys %sent;
        same($m->headers->{destination}, "/queue/$queue", 'destination');
        $_->disconnect for $s, $p;
    },
    bodies => sub {
        my ($s, $p, $q) = (peer(), peer(), $name . 'bodies');
        receipt($s, subscribe => {destination => "/queue/$q"});
        my $every = join('', map { chr } 0 .. 255) x 2;
        for my $body ($every, "\0", "\n\0\n", "\7" x 300000, "\r\n", "a\0\nMESSAGE\n\n\0") {
            $p->send_with_receipt({destination => "/queue/$q", body => $body, bytes_message => 1}) or fail('no receipt');
            next_frame($s, MESSAGE => $body);
        }
        for my $body (' ', '', "line\nline\n") {
            put($p, $q, $body);
            next_frame($s, MESSAGE => $body);
        }
        $_->disconnect for $s, $p;
    },
    prefetch => sub {
        for my $header (qw(prefetch-count activemq.prefetchSize prefetch)) {
            my ($s, $q) = (peer(), $name . $header);
            put($s, $q, 1 .. 3);
            receipt($s, subscribe => {destination => "/queue/$q", ack => 'client', $header => 1});
            for my $body (1 .. 3) {
                my $m = next_frame($s, MESSAGE => $body);
                silent($s);
                receipt($s, ack => {frame => $m}) if $body == 3;
                $s->ack({frame => $m}) if $body < 3;
            }
            $s->disconnect;
        }
    },
    reply => sub {
        my ($worker, $asker, $q) = (peer(), peer(), '/queue/' . $name . 'requests');
        receipt($worker, subscribe => {destination => $q, ack => 'client'});
        $asker->send_with_receipt({destination => $q, body => '6*7', 'reply-to' => '/temp-queue/answers', 'correlation-id' => 'c:1'});
        my $request = next_frame($worker, MESSAGE => '6*7');
        $worker->send({destination => $request->reply_to, body => '42', 'correlation-id' => $request->headers->{'correlation-id'}});
        my $answer = next_frame($asker, MESSAGE => '42');
        same($answer->headers->{'correlation-id'}, 'c:1', 'correlation-id');
        $_->disconnect for $worker, $asker;
    },
    topic => sub {
        my ($one, $all, $p) = (peer(), peer(), peer());
        receipt($one, subscribe => {destination => "/topic/${name}news"});
        receipt($all, subscribe => {destination => "/topic/${name}*"});
        $p->send({destination => "/topic/${name}news", body => 'hot'});
        next_frame($_, MESSAGE => 'hot') for $one, $all;
        $p->send({destination => "/topic/${name}other", body => 'cold'});
        next_frame($all, MESSAGE => 'cold');
        silent($one);
        $_->disconnect for $one, $all, $p;
    },
    # It promises no heart-beats: nobody misses them.
    idle => sub {
        my $s = peer();
        receipt($s, subscribe => {destination => "/queue/${name}idle"});
        fail('something came') if $s->can_read({timeout => 1});
        put(peer(), "${name}idle", 'alive');
        next_frame($s, MESSAGE => 'alive');
        $s->disconnect;
    },
    restart => sub {
        my ($s, $q) = (peer(), $name . 'restart');
        put($s, $q, qw(acked held kept));
        $s->subscribe({destination => "/queue/$q", ack => 'client'});
        my $m = next_frame($s, MESSAGE => 'acked');
        next_frame($s, MESSAGE => 'held');
        next_frame($s, MESSAGE => 'kept');
        receipt($s, ack => {frame => $m});
        print "restart\n";
        <STDIN>;
        # It notices, connects again and subscribes again by itself.
        my %seen;
        for (my $tries = 0; keys %seen < 2; $tries++) {
            fail('not redelivered') if $tries > 20;
            my $again = $s->receive_frame or next;
            same($again->command, 'MESSAGE', 'command');
            same($again->headers->{redelivered}, 'true', 'redelivered');
            $s->ack({frame => $again});
            $seen{$again->body} = 1;
        }
        same(join(' ', sort keys %seen), 'held kept', 'redelivered');
        $s->disconnect;
        # Its last ACKs have no receipt: they are processed all the same (S112).
        my $other = peer();
        my $deadline = time + $patience;
        while (count($other, $q)) {
            fail('ACKs before DISCONNECT are lost') if time > $deadline;
            select(undef, undef, undef, 0.05);
        }
        $other->disconnect;
    },
);

while (my ($check, $run) = splice(@checks, 0, 2)) {
    local $SIG{ALRM} = sub { fail('took too long') };
    alarm(3 * $patience);
    unless (eval { $run->(); 1 }) {
        my $why = $@;
        $why =~ s/\n/ /g;
        print "not ok $check: $why\n";
        exit 1;
    }
    print "ok $check\n";
}
