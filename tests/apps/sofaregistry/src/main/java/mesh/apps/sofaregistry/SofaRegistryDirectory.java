package mesh.apps.sofaregistry;

import com.alipay.sofa.registry.client.api.Publisher;
import com.alipay.sofa.registry.client.api.model.RegistryType;
import com.alipay.sofa.registry.client.api.model.UserData;
import com.alipay.sofa.registry.client.api.registration.PublisherRegistration;
import com.alipay.sofa.registry.client.api.registration.SubscriberRegistration;
import com.alipay.sofa.registry.client.provider.DefaultRegistryClient;
import com.alipay.sofa.registry.client.provider.DefaultRegistryClientConfigBuilder;
import com.alipay.sofa.registry.core.model.ScopeEnum;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import mesh.apps.Console;
import mesh.apps.Directory;
import mesh.apps.Flags;

/**
 * SOFARegistry with the REST services of SOFARPC, {@code NAME:1.0@rest}: {@code --host, --port} of a session server's HTTP.
 */
public final class SofaRegistryDirectory extends Directory {
    private static final String GROUP = "SOFA";

    private final DefaultRegistryClient registry;
    private final Map<String, Publisher> publishers = new HashMap<>();
    private final Map<String, Map<String, String>> published = new HashMap<>();

    private SofaRegistryDirectory(Flags flags) {
        registry = new DefaultRegistryClient(DefaultRegistryClientConfigBuilder.start()
                .setRegistryEndpoint(flags.require("host"))
                .setRegistryEndpointPort(flags.number("port", 9603))
                .setAppName("directory")
                .setDataCenter("DefaultDataCenter")
                .setZone("DEFAULT_ZONE")
                .setConnectTimeout(10_000)
                .setInvokeTimeout(10_000)
                .setSocketTimeout(10_000)
                .build());
        registry.init();
    }

    private static String dataId(String name) {
        return name + ":1.0@rest";
    }

    @Override
    protected void register(String name, String host, int port, Map<String, String> metadata) {
        StringBuilder data = new StringBuilder(host + ":" + port + "?rpcVer=51302&p=rest&v=4.0");
        metadata.forEach((key, value) -> data.append('&').append(key).append('=').append(value));
        published.computeIfAbsent(name, key -> new LinkedHashMap<>()).put(host + ":" + port, data.toString());
        publish(name);
    }

    @Override
    protected void deregister(String name, String host, int port) {
        published.get(name).remove(host + ":" + port);
        publish(name);
    }

    /** One publisher has all instances of a service. */
    private void publish(String name) {
        String[] data = published.get(name).values().toArray(String[]::new);
        Publisher publisher = publishers.get(name);
        if (data.length == 0) {
            registry.unregister(dataId(name), GROUP, RegistryType.PUBLISHER);
            publishers.remove(name);
        } else if (publisher == null) {
            PublisherRegistration registration = new PublisherRegistration(dataId(name));
            registration.setGroup(GROUP);
            publishers.put(name, registry.register(registration, data));
        } else {
            publisher.republish(data);
        }
    }

    @Override
    protected void watch(String name) {
        SubscriberRegistration registration =
                new SubscriberRegistration(dataId(name), (id, data) -> seen(name, entries(data)));
        registration.setGroup(GROUP);
        registration.setScopeEnum(ScopeEnum.global);
        registry.register(registration);
    }

    private static List<String> entries(UserData data) {
        List<String> entries = new ArrayList<>();
        for (List<String> zone : data.getZoneData().values()) {
            for (String box : zone) {
                String[] parts = box.split("\\?", 2);
                String[] address = parts[0].split(":");
                Map<String, String> metadata = new HashMap<>();
                for (String pair : parts[1].split("&")) {
                    String[] word = pair.split("=", 2);
                    metadata.put(word[0], word.length == 2 ? word[1] : "");
                }
                entries.add(entry(address[0], Integer.parseInt(address[1]), metadata));
            }
        }
        return entries;
    }

    public static void main(String[] args) {
        Console console = new Console();
        new SofaRegistryDirectory(new Flags(args)).serve(console);
    }
}
