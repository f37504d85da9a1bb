package mesh.apps;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/**
 * A consumer's commands.
 *
 * <pre>
 * cases [NAME...]                             one line a case: case NAME ok|FAIL MILLIS DETAIL, then summary ok=N failed=N
 * call METHOD [timeout=MS] [h.NAME=VALUE...]  result ok MILLIS LABEL, or: result FAIL MILLIS EXCEPTION
 * tally METHOD count=N [as call]              tally LABEL N for each label, tally ! N EXCEPTION for each kind of failure
 * load METHOD threads=N [pause=MS] [as call]  starts calls in the background until: stop
 * progress                                    progress ok=N failed=N of the load so far
 * stop                                        failure STARTED_EPOCH_MS MILLIS EXCEPTION for each, then load ok=N failed=N and tallies
 * </pre>
 */
final class Commands {
    private final Consumer consumer;
    private final Console console;
    private Load load;

    Commands(Consumer consumer, Console console) {
        this.consumer = consumer;
        this.console = console;
    }

    void run(String line) throws Throwable {
        String[] words = line.trim().split(" +");
        switch (words[0]) {
            case "cases" -> cases(List.of(words).subList(1, words.length));
            case "call" -> call(new Call(words));
            case "tally" -> tally(new Call(words));
            case "load" -> {
                if (load != null) {
                    throw new IllegalStateException("a load is running");
                }
                load = new Load(new Call(words));
            }
            case "progress" -> {
                if (load != null) {
                    console.print("progress ok=" + load.succeeded() + " failed=" + load.failed());
                }
            }
            case "stop" -> {
                if (load != null) {
                    load.stop();
                    load = null;
                }
            }
            default -> throw new IllegalArgumentException("unknown command: " + line);
        }
    }

    /** A call as a command describes it. */
    private final class Call {
        final String method;
        final Map<String, String> headers = new HashMap<>();
        final Map<String, Integer> numbers = new HashMap<>();

        Call(String[] words) {
            method = words[1];
            for (int i = 2; i < words.length; i++) {
                int equals = words[i].indexOf('=');
                String name = words[i].substring(0, equals);
                String value = words[i].substring(equals + 1);
                if (name.startsWith("h.")) {
                    headers.put(name.substring(2), value);
                } else {
                    numbers.put(name, Integer.parseInt(value));
                }
            }
        }

        int number(String name, int fallback) {
            return numbers.getOrDefault(name, fallback);
        }

        String run() throws Throwable {
            return consumer.label(method, headers, number("timeout", 10_000));
        }
    }

    private void cases(List<String> names) {
        int ok = 0;
        int failed = 0;
        for (String name : names.isEmpty() ? consumer.cases.keySet() : names) {
            long start = System.nanoTime();
            String outcome;
            try {
                String detail = consumer.cases.get(name).run();
                outcome = "ok " + millisSince(start) + " " + detail;
                ok++;
            } catch (Throwable e) {
                outcome = "FAIL " + millisSince(start) + " " + Consumer.describe(e);
                failed++;
            }
            console.print("case " + name + " " + outcome);
        }
        console.print("summary ok=" + ok + " failed=" + failed);
    }

    private void call(Call call) {
        long start = System.nanoTime();
        try {
            String label = call.run();
            console.print("result ok " + millisSince(start) + " " + label);
        } catch (Throwable e) {
            console.print("result FAIL " + millisSince(start) + " " + Consumer.describe(e));
        }
    }

    private void tally(Call call) {
        Map<String, Integer> labels = new TreeMap<>();
        Map<String, Integer> failures = new TreeMap<>();
        for (int i = call.number("count", 1); i > 0; i--) {
            try {
                labels.merge(call.run(), 1, Integer::sum);
            } catch (Throwable e) {
                failures.merge(Consumer.describe(e), 1, Integer::sum);
            }
        }
        labels.forEach((label, count) -> console.print("tally " + label + " " + count));
        failures.forEach((failure, count) -> console.print("tally ! " + count + " " + failure));
    }

    private static long millisSince(long start) {
        return (System.nanoTime() - start) / 1_000_000;
    }

    /** Calls from a fixed number of threads: no more calls are in flight than there are threads. */
    private final class Load {
        private final List<Thread> threads = new ArrayList<>();
        private final List<String> failures = new ArrayList<>();
        private final Map<String, Integer> labels = new TreeMap<>();
        private volatile boolean running = true;
        private int ok;

        Load(Call call) {
            int pause = call.number("pause", 0);
            for (int i = call.number("threads", 1); i > 0; i--) {
                Thread thread = new Thread(() -> loop(call, pause), "load-" + i);
                thread.setDaemon(true);
                threads.add(thread);
                thread.start();
            }
        }

        private void loop(Call call, int pauseMillis) {
            while (running) {
                long started = System.currentTimeMillis();
                long start = System.nanoTime();
                String label = null;
                String failure = null;
                try {
                    label = call.run();
                } catch (Throwable e) {
                    failure = "failure " + started + " " + millisSince(start) + " " + Consumer.describe(e);
                }
                synchronized (this) {
                    if (failure == null) {
                        ok++;
                        labels.merge(label, 1, Integer::sum);
                    } else {
                        failures.add(failure);
                    }
                }
                try {
                    Thread.sleep(pauseMillis);
                } catch (InterruptedException e) {
                    return;
                }
            }
        }

        synchronized int succeeded() {
            return ok;
        }

        synchronized int failed() {
            return failures.size();
        }

        void stop() throws InterruptedException {
            running = false;
            for (Thread thread : threads) {
                thread.join();
            }
            failures.stream().limit(100).forEach(console::print);
            labels.forEach((label, count) -> console.print("tally " + label + " " + count));
            console.print("load ok=" + ok + " failed=" + failures.size());
        }
    }
}
