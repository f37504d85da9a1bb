package mesh.apps.nacos;

import com.alibaba.nacos.api.NacosFactory;
import com.alibaba.nacos.api.config.ConfigService;
import com.alibaba.nacos.api.config.listener.AbstractListener;
import com.alibaba.nacos.api.naming.NamingService;
import com.alibaba.nacos.api.naming.listener.NamingEvent;
import com.alibaba.nacos.api.naming.pojo.Instance;
import java.lang.reflect.Method;
import java.lang.reflect.Proxy;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.stream.Collectors;
import mesh.apps.Console;
import mesh.apps.Flags;

/**
 * The stock Nacos client of the version that the module names: {@code --server host:port [--namespace NAME] [--username NAME --password WORD]}.
 *
 * <pre>
 * register SERVICE IP PORT [OPTION...]        options: group=, cluster=, weight=, ephemeral=, enabled=, m.NAME=VALUE
 * deregister SERVICE IP PORT [OPTION...]
 * batch SERVICE IP:PORT,... [OPTION...]       registers these and no others
 * unbatch SERVICE IP:PORT,... [OPTION...]     takes these out
 * list SERVICE [OPTION...]                    what the server says now
 * subscribe SERVICE [OPTION...]               then: seen SERVICE prints TIME and the last list that was pushed
 * services [OPTION...]                        names of a group
 * publish DATAID GROUP CONTENT, cas DATAID GROUP CONTENT MD5, config DATAID GROUP, remove DATAID GROUP
 * listen DATAID GROUP                         then: heard DATAID prints TIME and the last content
 * watch SERVICES GROUPS                       (3.x) patterns; then: watched prints what is there by them
 * status, quit
 * </pre>
 */
public final class Client {
    private static final long TIMEOUT_MILLIS = 5000;

    private final NamingService naming;
    private final ConfigService configs;
    private final Map<String, String> seen = new ConcurrentHashMap<>();
    private final Map<String, String> heard = new ConcurrentHashMap<>();
    private final Map<String, String> watched = new ConcurrentHashMap<>();

    private Client(Flags flags) throws Exception {
        Properties properties = new Properties();
        properties.put("serverAddr", flags.require("server"));
        properties.put("namingLoadCacheAtStart", "false");
        for (String name : List.of("namespace", "username", "password")) {
            if (flags.get(name, null) != null) {
                properties.put(name, flags.require(name));
            }
        }
        naming = NacosFactory.createNamingService(properties);
        configs = NacosFactory.createConfigService(properties);
    }

    private record Options(Map<String, String> words) {
        static Options of(String[] words, int from) {
            Map<String, String> found = new TreeMap<>();
            for (int i = from; i < words.length; i++) {
                int equals = words[i].indexOf('=');
                found.put(words[i].substring(0, equals), words[i].substring(equals + 1));
            }
            return new Options(found);
        }

        String group() {
            return words.getOrDefault("group", "DEFAULT_GROUP");
        }

        Instance instance(String ip, String port) {
            Instance instance = new Instance();
            instance.setIp(ip);
            instance.setPort(Integer.parseInt(port));
            instance.setWeight(Double.parseDouble(words.getOrDefault("weight", "1")));
            instance.setEphemeral(Boolean.parseBoolean(words.getOrDefault("ephemeral", "true")));
            instance.setEnabled(Boolean.parseBoolean(words.getOrDefault("enabled", "true")));
            instance.setClusterName(words.getOrDefault("cluster", "DEFAULT"));
            words.forEach((name, value) -> {
                if (name.startsWith("m.")) {
                    instance.addMetadata(name.substring(2), value);
                }
            });
            return instance;
        }

        List<Instance> instances(String addresses) {
            List<Instance> instances = new ArrayList<>();
            for (String address : addresses.split(",")) {
                String[] parts = address.split(":");
                instances.add(instance(parts[0], parts[1]));
            }
            return instances;
        }
    }

    private static String describe(List<Instance> instances) {
        return instances.stream()
                .map(i -> i.getIp() + ":" + i.getPort() + "/" + i.getClusterName() + "/" + i.getWeight()
                        + (i.isHealthy() ? "" : "/ill") + (i.isEphemeral() ? "" : "/persistent")
                        + new TreeMap<>(i.getMetadata()))
                .sorted()
                .collect(Collectors.joining(" "));
    }

    private static String stamped(String text) {
        return System.currentTimeMillis() + " " + text;
    }

    private String run(String[] words) throws Exception {
        switch (words[0]) {
            case "register" -> {
                Options options = Options.of(words, 4);
                naming.registerInstance(words[1], options.group(), options.instance(words[2], words[3]));
            }
            case "deregister" -> {
                Options options = Options.of(words, 4);
                naming.deregisterInstance(words[1], options.group(), options.instance(words[2], words[3]));
            }
            case "batch", "unbatch" -> {
                // 1.x has none.
                String method = words[0].equals("batch") ? "batchRegisterInstance" : "batchDeregisterInstance";
                Options options = Options.of(words, 3);
                NamingService.class.getMethod(method, String.class, String.class, List.class)
                        .invoke(naming, words[1], options.group(), options.instances(words[2]));
            }
            case "list" -> {
                Options options = Options.of(words, 2);
                return describe(naming.getAllInstances(words[1], options.group(), false));
            }
            case "subscribe" -> {
                Options options = Options.of(words, 2);
                naming.subscribe(words[1], options.group(), event -> seen.put(words[1],
                        stamped(describe(((NamingEvent) event).getInstances()))));
            }
            case "seen" -> {
                return seen.getOrDefault(words[1], "0 ");
            }
            case "services" -> {
                Options options = Options.of(words, 1);
                return naming.getServicesOfServer(1, 1000, options.group()).getData().stream()
                        .sorted().collect(Collectors.joining(" "));
            }
            case "publish" -> {
                return String.valueOf(configs.publishConfig(words[1], words[2], words[3]));
            }
            case "cas" -> {
                // 1.x has none.
                Class<?> text = String.class;
                return String.valueOf(ConfigService.class.getMethod("publishConfigCas", text, text, text, text)
                        .invoke(configs, words[1], words[2], words[3], words[4]));
            }
            case "config" -> {
                return String.valueOf(configs.getConfig(words[1], words[2], TIMEOUT_MILLIS));
            }
            case "remove" -> {
                return String.valueOf(configs.removeConfig(words[1], words[2]));
            }
            case "listen" -> configs.addListener(words[1], words[2], new AbstractListener() {
                @Override
                public void receiveConfigInfo(String content) {
                    heard.put(words[1], stamped(content));
                }
            });
            case "heard" -> {
                return heard.getOrDefault(words[1], "0 ");
            }
            case "watch" -> watch(words[1], words[2]);
            case "watched" -> {
                return new TreeMap<>(watched).toString();
            }
            case "status" -> {
                return naming.getServerStatus();
            }
            case "quit" -> {
                naming.shutDown();
                configs.shutDown();
            }
            default -> throw new IllegalArgumentException("unknown command: " + words[0]);
        }
        return "done";
    }

    /** The interface is not there before 3.x. */
    private void watch(String services, String groups) throws Exception {
        Class<?> type = Class.forName("com.alibaba.nacos.api.naming.listener.FuzzyWatchEventWatcher");
        Object watcher = Proxy.newProxyInstance(type.getClassLoader(), new Class<?>[] {type}, (proxy, method, args) -> {
            switch (method.getName()) {
                case "onEvent" -> {
                    String name = get(args[0], "getGroupName") + "/" + get(args[0], "getServiceName");
                    if (get(args[0], "getChangeType").startsWith("ADD")) {
                        watched.put(name, "there");
                    } else {
                        watched.remove(name);
                    }
                    return null;
                }
                case "hashCode" -> {
                    return System.identityHashCode(proxy);
                }
                case "equals" -> {
                    return proxy == args[0];
                }
                default -> {
                    return null;
                }
            }
        });
        NamingService.class.getMethod("fuzzyWatch", String.class, String.class, type)
                .invoke(naming, services, groups, watcher);
    }

    private static String get(Object event, String name) throws ReflectiveOperationException {
        Method getter = event.getClass().getMethod(name);
        return String.valueOf(getter.invoke(event));
    }

    public static void main(String[] args) throws Exception {
        Console console = new Console();
        Client client = new Client(new Flags(args));
        console.print("READY");
        for (String line = console.read(); line != null; line = console.read()) {
            try {
                console.print(client.run(line.split(" ")));
            } catch (Throwable failure) {
                failure.printStackTrace();
                Throwable cause = failure.getCause() == null ? failure : failure.getCause();
                console.print("error " + cause);
            }
            if (line.equals("quit")) {
                System.exit(0);
            }
        }
        Runtime.getRuntime().halt(0);
    }
}
